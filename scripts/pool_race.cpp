// Three lanes call kernels on one pool while its number of threads changes between rounds: for ThreadSanitizer
// (scripts/sanitize.sh thread). Every result is compared with what one thread computes.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "pool.h"

CLM_API void clm_set_threads(int threads);
CLM_API void clm_touch(float* values, int64_t count);
CLM_API int32_t clm_sort_rows(uint64_t* keys, int32_t* ids, uint64_t* key_scratch, int32_t* id_scratch, int64_t rows);
CLM_API void clm_knn(const float* points, int64_t count, int k, int levels, void* items, void* nodes, float* squared);

namespace {

std::atomic<int> wrong{0};

void expect(bool right, const char* what) {
    if (!right && wrong++ < 10) std::printf("wrong: %s\n", what);
}

// A job of many small chunks, some of which are themselves long: helpers come and go, the caller waits for the last.
void sums(int rounds) {
    for (int round = 0; round < rounds; ++round) {
        const int64_t chunks = 1 + round % 97;
        std::vector<int64_t> found(chunks);
        clm::parallel(chunks, [&](int64_t chunk, int worker) {
            expect(worker >= 0 && worker < clm::thread_count(), "a worker's number");
            int64_t sum = 0;
            for (int64_t i = 0; i <= (chunk % 7) * 1000; ++i) sum += i * chunk;
            found[chunk] = sum;
        });
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t last = (chunk % 7) * 1000;
            expect(found[chunk] == chunk * last * (last + 1) / 2, "a sum");
        }
    }
}

void sorts(int rounds) {
    std::mt19937_64 random(1);
    const int64_t rows = 200000;
    std::vector<uint64_t> keys(rows), scratch(rows);
    std::vector<int32_t> ids(rows), id_scratch(rows);
    for (int round = 0; round < rounds; ++round) {
        for (uint64_t& key : keys) key = random() >> 1;
        const std::vector<uint64_t> before = keys;
        expect(clm_sort_rows(keys.data(), ids.data(), scratch.data(), id_scratch.data(), rows) == 0, "memory");
        for (int64_t i = 1; i < rows; ++i) expect(before[ids[i - 1]] <= before[ids[i]], "an order");
    }
}

void neighbours(int rounds) {
    const int64_t count = 20000;
    int levels = 0;
    while (count >> levels > 8) ++levels;
    std::mt19937 random(2);
    std::uniform_real_distribution<float> unit;
    std::vector<float> points(3 * count), items(4 * count), nodes(2 * ((int64_t(1) << levels) - 1)), squared(3 * count), first;
    for (float& value : points) value = unit(random);
    std::vector<float> values(1 << 20, 0.f);
    for (int round = 0; round < rounds; ++round) {
        clm_knn(points.data(), count, 3, levels, items.data(), nodes.data(), squared.data());
        if (first.empty()) first = squared;
        expect(first == squared, "neighbours");
        clm_touch(values.data(), int64_t(values.size()));
    }
    for (float value : values) expect(value == float(rounds), "a touch");
}

}  // namespace

int main() {
    for (int threads : {1, 2, 4, 8, 3}) {
        clm_set_threads(threads);
        std::thread a(sums, 3000), b(sorts, 6), c(neighbours, 6);
        a.join();
        b.join();
        c.join();
    }
    std::printf(wrong ? "%d results are wrong\n" : "every result is right, no race was seen\n", wrong.load());
    return wrong != 0;
}
