// Pages between RAM and a file: the live rows of a page lie in its slot one array after the other, so that one request moves
// them, and a checksum says whether what comes back is what was written.
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <unistd.h>

#include "pool.h"

namespace {

constexpr int64_t kBlock = 4096;  // of the file system: requests begin and end at multiples of it
constexpr int kLanes = 16;

// Fletcher's checksum over 32-bit words in 16 lanes, the last words padded with zeros. Neither sum overflows below 2^31 words.
uint64_t checksum(const char* bytes, int64_t count) {
    uint64_t first[kLanes] = {}, second[kLanes] = {};
    uint32_t words[kLanes];
    int64_t at = 0;
    for (; at + int64_t(sizeof words) <= count; at += sizeof words) {
        std::memcpy(words, bytes + at, sizeof words);
        for (int k = 0; k < kLanes; ++k) second[k] += first[k] += words[k];
    }
    if (at < count) {
        std::memset(words, 0, sizeof words);
        std::memcpy(words, bytes + at, size_t(count - at));
        for (int k = 0; k < kLanes; ++k) second[k] += first[k] += words[k];
    }
    uint64_t sum = uint64_t(count);
    for (int k = 0; k < kLanes; ++k) {
        for (uint64_t part : {first[k], second[k]}) {
            sum = (sum ^ part) * 0xBF58476D1CE4E5B9u;
            sum ^= sum >> 29;
        }
    }
    return sum;
}

// Moves all of `bytes`; 0, an errno, or -1 where the file ends too early.
template <class F>
int move_all(F&& move, char* buffer, int64_t bytes, int64_t offset) {
    while (bytes > 0) {
        const int64_t moved = move(buffer, size_t(bytes), offset);
        if (moved < 0 && errno == EINTR) continue;
        if (moved < 0) return errno;
        if (moved == 0) return -1;
        buffer += moved, offset += moved, bytes -= moved;
    }
    return 0;
}

}  // namespace

struct PageArrays {
    char* const* arrays;        // [count], of all frames
    const int64_t* row_bytes;   // [count]
    int64_t count, page_rows;
};

// What a thread does in one go: per entry k, first the rows out_rows[k] of frame frames[k] go to out_at[k] (bytes; none where
// out_rows is 0) and out_sums[k] becomes their checksum, then in_rows[k] rows come from in_at[k] into the same frame, and have
// to have the checksum in_sums[k]. buffer: aligned, for a page. Returns 0 or the error of the entry done[0], of which the page
// went out where done[1]: an errno, -1: the file ended too early, -2: another checksum.
CLM_API int clm_swap_pages(int file, const PageArrays* a, int64_t entries, const int64_t* frames, const int64_t* out_at,
                           const int32_t* out_rows, uint64_t* out_sums, const int64_t* in_at, const int32_t* in_rows,
                           const uint64_t* in_sums, char* buffer, int64_t* done) {
    auto each_part = [&](int64_t frame, int64_t rows, auto&& copy) {
        int64_t at = 0;
        for (int64_t k = 0; k < a->count; ++k) {
            const int64_t bytes = rows * a->row_bytes[k];
            copy(a->arrays[k] + frame * a->page_rows * a->row_bytes[k], buffer + at, size_t(bytes));
            at += bytes;
        }
        return at;
    };
    for (done[0] = 0; done[0] < entries; ++done[0]) {
        const int64_t k = done[0];
        done[1] = 0;
        if (out_rows[k] > 0) {
            const int64_t bytes = each_part(frames[k], out_rows[k], [](char* rows, char* packed, size_t n) { std::memcpy(packed, rows, n); });
            const int64_t whole = (bytes + kBlock - 1) / kBlock * kBlock;
            std::memset(buffer + bytes, 0, size_t(whole - bytes));
            out_sums[k] = checksum(buffer, bytes);
            if (int error = move_all([&](char* b, size_t n, int64_t o) { return pwrite(file, b, n, o); }, buffer, whole, out_at[k]))
                return error;
        }
        done[1] = 1;
        if (in_rows[k] > 0) {
            int64_t bytes = 0;
            for (int64_t i = 0; i < a->count; ++i) bytes += in_rows[k] * a->row_bytes[i];
            const int64_t whole = (bytes + kBlock - 1) / kBlock * kBlock;
            if (int error = move_all([&](char* b, size_t n, int64_t o) { return pread(file, b, n, o); }, buffer, whole, in_at[k]))
                return error;
            if (checksum(buffer, bytes) != in_sums[k]) return -2;
            each_part(frames[k], in_rows[k], [](char* rows, char* packed, size_t n) { std::memcpy(rows, packed, n); });
        }
    }
    return 0;
}

// Pages of ascending rows, which may be named more than once, and where the rows of each begin; returns how many.
CLM_API int64_t clm_page_runs(const int32_t* rows, int64_t count, int64_t page_rows, int32_t* pages, int64_t* starts) {
    int64_t runs = 0;
    for (int64_t i = 0; i < count;) {
        const int64_t page = rows[i] / page_rows, end = (page + 1) * page_rows;
        pages[runs] = int32_t(page);
        starts[runs++] = i;
        int64_t low = i + 1, high = count;  // the first row behind the page lies here
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (rows[middle] < end) low = middle + 1;
            else high = middle;
        }
        i = low;
    }
    return runs;
}

// places[i] = where row rows[i] lies in the frames: frame_of its page, the same place in it.
CLM_API void clm_places(const int32_t* rows, int64_t count, const int32_t* frame_of, int64_t page_rows, int32_t* places) {
    constexpr int64_t chunk = 1 << 15;
    clm::parallel((count + chunk - 1) / chunk, [&](int64_t part, int) {
        const int64_t end = part * chunk + chunk < count ? part * chunk + chunk : count;
        int64_t first = 0, last = 0, shift = 0;  // rows of the page of the row before, and how far they lie from their ids
        for (int64_t i = part * chunk; i < end; ++i) {
            if (rows[i] < first || rows[i] >= last) {
                const int64_t page = rows[i] / page_rows;
                first = page * page_rows, last = first + page_rows;
                shift = frame_of[page] * page_rows - first;
            }
            places[i] = int32_t(rows[i] + shift);
        }
    });
}
