// A small thread pool: parallel_for over chunks, claimed from an atomic counter.
//
// Several callers (the lanes) may be inside parallel_for at once. A caller always works on its own job, idle workers help
// whichever job is oldest. Results never depend on who runs a chunk: a chunk writes only what belongs to it.
#pragma once
#include <cstdint>

namespace clm {

// Calls body(context, chunk, worker) for chunk in [0, chunks). worker is in [0, thread_count()) and unique among the
// threads inside this job at one time, so it may index scratch memory. Returns when every chunk has finished.
void parallel_for(int64_t chunks, void (*body)(void*, int64_t chunk, int worker), void* context);

int thread_count();

template <class F>
void parallel(int64_t chunks, F&& f) {
    parallel_for(chunks, [](void* c, int64_t chunk, int worker) { (*static_cast<F*>(c))(chunk, worker); }, (void*)&f);
}

}  // namespace clm

#define CLM_API extern "C" __attribute__((visibility("default")))
