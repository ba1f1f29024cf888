// Splats that travel: what one process projects, another rasterises. Drawn rows alone, in row order, 60 bytes each; what comes
// back is the sum of each row's moments, 40 bytes, or 48 where screen gradients are of absolute values. Copies: bit for bit
// what one process with all rows has in its workspace.
#include <cstring>

#include "raster.h"

namespace clm {
namespace {

constexpr int64_t kChunk = 4096;
constexpr int kSplat = 15;  // floats of a record but the last one, which nobody uses
constexpr int kSent = 10;   // moments that matter without absolute values

// Calls each(row, number among the drawn) for the drawn rows of the view.
template <class F>
void for_drawn(Workspace& ws, F&& each) {
    const int64_t rows = ws.rows, chunks = (rows + kChunk - 1) / kChunk;
    std::vector<int64_t> begins(size_t(chunks) + 1, 0);
    auto end_of = [&](int64_t chunk) { return (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows; };
    parallel(chunks, [&](int64_t chunk, int) {
        int64_t drawn = 0;
        for (int64_t i = chunk * kChunk; i < end_of(chunk); ++i) drawn += ws.radii[2 * i] > 0;
        begins[size_t(chunk) + 1] = drawn;
    });
    for (size_t chunk = 0; chunk < size_t(chunks); ++chunk) begins[chunk + 1] += begins[chunk];
    parallel(chunks, [&](int64_t chunk, int) {
        int64_t at = begins[size_t(chunk)];
        for (int64_t i = chunk * kChunk; i < end_of(chunk); ++i)
            if (ws.radii[2 * i] > 0) each(i, at++);
    });
}

}  // namespace
}  // namespace clm

using namespace clm;

// The drawn rows of the view to out [drawn, 15].
CLM_API void clm_raster_take_splats(void* handle, float* out) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    for_drawn(ws, [&](int64_t row, int64_t at) { std::memcpy(out + at * kSplat, &ws.records[row], kSplat * sizeof(float)); });
}

// Appends splats [count, 15] that another process took. Returns 0, or -1 when memory ran out (and nothing was appended).
CLM_API int clm_raster_put_splats(void* handle, const float* splats, int64_t count) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    const int64_t first = ws.rows, after = first + count;
    try {
        ws.records.need(after, first);
        ws.radii.need(2 * after, 2 * first);
    } catch (const std::bad_alloc&) {
        return -1;
    }
    std::atomic<bool> identified{false};
    parallel((count + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
        const int64_t end = (chunk + 1) * kChunk < count ? (chunk + 1) * kChunk : count;
        bool any = false;
        for (int64_t i = chunk * kChunk; i < end; ++i) {
            Record& record = ws.records[first + i];
            std::memcpy(&record, splats + i * kSplat, kSplat * sizeof(float));
            record.unused = 0.0f;
            any = any || record.identity != 0;
            ws.radii[2 * (first + i)] = ws.radii[2 * (first + i) + 1] = 1;  // drawn; how large, nobody asks again
        }
        if (any) identified.store(true, std::memory_order_relaxed);
    });
    ws.rows = after;
    ws.drawn += count;
    ws.identified = ws.identified || identified.load();
    ws.sorted = false;
    return 0;
}

// The sums of moments of `count` of the view's rows from `first` on, all of which are drawn, to out [count, 10], or 12 where they
// hold sums of absolute values.
CLM_API void clm_raster_take_gradients(void* handle, int64_t first, int64_t count, float* out) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    const int sent = ws.absgrad ? kMoments : kSent;
    parallel((count + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
        const int64_t end = (chunk + 1) * kChunk < count ? (chunk + 1) * kChunk : count;
        for (int64_t i = chunk * kChunk; i < end; ++i) {
            float moments[kDeepMoments];
            row_moments(ws, first + i, moments);
            std::memcpy(out + i * sent, moments, size_t(sent) * sizeof(float));
        }
    });
}

// The same to the drawn rows of the view, which another process rasterised. Returns 0, or -1 when memory ran out.
CLM_API int clm_raster_put_gradients(void* handle, const float* gradients, int absgrad) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    const int sent = absgrad ? kMoments : kSent;
    ws.absgrad = absgrad != 0;
    ws.moments_of = kMoments;
    ws.summed = true;
    try {
        ws.sums.need(ws.rows * kMoments);
    } catch (const std::bad_alloc&) {
        return -1;
    }
    for_drawn(ws, [&](int64_t row, int64_t at) {
        float* to = ws.sums.data() + row * kMoments;
        std::memcpy(to, gradients + at * sent, size_t(sent) * sizeof(float));
        for (int k = sent; k < kMoments; ++k) to[k] = 0.0f;
    });
    return 0;
}
