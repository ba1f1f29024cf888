// Rows of many arrays brought into another order in place: the order is cut into cycles once, then every array walks them.
#include <cstring>

#include "pool.h"

namespace {

constexpr int64_t kPiece = 64;   // bytes of a row that one task moves: a cache line
constexpr int64_t kAhead = 16;

struct Piece {
    char* base;
    int64_t stride, bytes;
};

// BYTES 0: as many as the piece says.
template <int64_t BYTES>
void walk_piece(const Piece& piece, const int32_t* walk, int64_t steps) {
    const size_t bytes = size_t(BYTES ? BYTES : piece.bytes);
    char held[kPiece];
    char* to = nullptr;
    for (int64_t k = 0; k < steps; ++k) {
        if (k + kAhead < steps) {
            int64_t ahead = walk[k + kAhead];
            __builtin_prefetch(piece.base + (ahead < 0 ? ~ahead : ahead) * piece.stride, 1);
        }
        int64_t row = walk[k];
        if (row < 0) {
            if (to) std::memcpy(to, held, bytes);
            to = piece.base + ~row * piece.stride;
            std::memcpy(held, to, bytes);
        } else {
            char* from = piece.base + row * piece.stride;
            std::memcpy(to, from, bytes);
            to = from;
        }
    }
    if (to) std::memcpy(to, held, bytes);
}

}  // namespace

// Cuts `order` [rows] into cycles: row ids one cycle after the other, the first of each as its complement, rows that stay
// left out. seen: [(rows + 63) / 64] zeros. Returns how many ids, or -1 where `order` is no permutation.
CLM_API int64_t clm_permutation_walk(const int32_t* order, int64_t rows, uint64_t* seen, int32_t* walk) {
    auto first_time = [&](int64_t row) {
        uint64_t bit = uint64_t(1) << (row & 63);
        bool fresh = (seen[row >> 6] & bit) == 0;
        seen[row >> 6] |= bit;
        return fresh;
    };
    int64_t steps = 0;
    for (int64_t start = 0; start < rows; ++start) {
        if (!first_time(start)) continue;
        int64_t row = order[start];
        if (row == start) continue;
        walk[steps++] = ~int32_t(start);
        for (; row != start; row = order[row]) {
            if (row < 0 || row >= rows || !first_time(row)) return -1;
            walk[steps++] = int32_t(row);
        }
    }
    return steps;
}

// Row i of every array becomes what its row order[i] was. row_bytes [count]; walk as above.
CLM_API void clm_permute(char* const* arrays, const int64_t* row_bytes, int64_t count, const int32_t* walk,
                         int64_t steps) {
    int64_t pieces = 0;
    for (int64_t a = 0; a < count; ++a) pieces += (row_bytes[a] + kPiece - 1) / kPiece;
    clm::parallel(pieces, [&](int64_t index, int) {
        int64_t a = 0, before;
        while (index >= (before = (row_bytes[a] + kPiece - 1) / kPiece)) {
            index -= before;
            ++a;
        }
        int64_t left = row_bytes[a] - index * kPiece;
        Piece piece{arrays[a] + index * kPiece, row_bytes[a], left < kPiece ? left : kPiece};
        switch (piece.bytes) {
            case 64: return walk_piece<64>(piece, walk, steps);
            case 48: return walk_piece<48>(piece, walk, steps);
            case 32: return walk_piece<32>(piece, walk, steps);
            case 16: return walk_piece<16>(piece, walk, steps);
            case 8: return walk_piece<8>(piece, walk, steps);
            case 4: return walk_piece<4>(piece, walk, steps);
            default: return walk_piece<0>(piece, walk, steps);
        }
    });
}

// Rows moved one by one in the order of the list: row to[k] of every array becomes what row from[k] is by then. Runs
// [run_count + 1] cut the list into parts that nobody else reads or writes rows of; row_bytes [count].
CLM_API void clm_move_rows(char* const* arrays, const int64_t* row_bytes, int64_t count, const int32_t* from,
                           const int32_t* to, const int64_t* runs, int64_t run_count) {
    clm::parallel(run_count, [&](int64_t run, int) {
        for (int64_t a = 0; a < count; ++a) {
            const int64_t bytes = row_bytes[a];
            for (int64_t k = runs[run]; k < runs[run + 1]; ++k)
                std::memcpy(arrays[a] + to[k] * bytes, arrays[a] + from[k] * bytes, size_t(bytes));
        }
    });
}
