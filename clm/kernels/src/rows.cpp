// Rows in motion: catch up + gather, arena placement, gradient send-back. Adam itself is in adam.cpp.
#include <cstring>

#include "rows.h"

using namespace clm;

// Copies rows, caught up to step - 1, to out[slots[i]] (or out[i]); the store is not changed. Colour rows of the target lie
// colour_stride floats apart: staging packs the active columns, so that one contiguous copy moves nothing else.
CLM_API void clm_fetch(const StoreView* s, const AdamStep* a, const int32_t* rows, const int32_t* slots, int64_t count,
                       float* out_geometry, float* out_colour, int32_t colour_columns, int32_t colour_stride) {
    const bool adam = a != nullptr && s->m_geometry != nullptr;
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (i + kAhead < end) prefetch_row(*s, rows[i + kAhead], colour_columns);
            const int64_t row = rows[i], to = slots ? slots[i] : i;
            float* geometry = out_geometry + to * kGeometry;
            float* colour = out_colour + to * colour_stride;
            std::memcpy(geometry, s->geometry + row * kGeometry, sizeof(float) * kGeometry);
            std::memcpy(colour, s->colour + row * kColour, sizeof(float) * colour_columns);
            const int stamp = adam ? s->stamp[row] : 0;
            if (stamp == 0 || stamp == a->step - 1) continue;  // stamp 0: never had a gradient, the moments are zero
            const PerColumn drift = drift_between(*a, stamp, a->step - 1);
            with_moments(*s, [&](auto type) {
                move_along(drift, a->eps_drift[stamp], Moments<decltype(type)>(*s, row), geometry, colour, colour_columns);
            });
        }
    });
}

// entries[rows[i]] = fresh[i] where the radius of fresh[i] is not negative.
CLM_API void clm_put_entries(const int32_t* rows, const float* fresh, int64_t count, float* entries) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (fresh[i * 4 + 3] >= 0.f) std::memcpy(entries + int64_t(rows[i]) * 4, fresh + i * 4, 16);
    });
}

// Staging to arena: rows go to their slots, gradient rows start at zero. staging == nullptr: only the zeros.
CLM_API void clm_place(const float* staging_geometry, const float* staging_colour, int32_t staging_stride,
                       const int32_t* slots, int64_t count, float* geometry, float* colour, float* grad_geometry,
                       float* grad_colour, int32_t colour_columns) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t slot = slots[i];
            if (staging_geometry) {
                std::memcpy(geometry + slot * kGeometry, staging_geometry + i * kGeometry, sizeof(float) * kGeometry);
                std::memcpy(colour + slot * kColour, staging_colour + i * staging_stride, sizeof(float) * colour_columns);
            }
            std::memset(grad_geometry + slot * kGradGeometry, 0, sizeof(float) * kGradGeometry);
            std::memset(grad_colour + slot * kColour, 0, sizeof(float) * colour_columns);
        }
    });
}

// Gradient rows between two places: to[to_slots[i]] = from[from_slots[i]]; a null index means position i.
CLM_API void clm_move_gradients(const float* from_geometry, const float* from_colour, int32_t from_stride,
                                const int32_t* from_slots, int64_t count, float* to_geometry, float* to_colour,
                                int32_t to_stride, const int32_t* to_slots, int32_t colour_columns) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t from = from_slots ? from_slots[i] : i, to = to_slots ? to_slots[i] : i;
            std::memcpy(to_geometry + to * kGradGeometry, from_geometry + from * kGradGeometry, sizeof(float) * kGradGeometry);
            std::memcpy(to_colour + to * to_stride, from_colour + from * from_stride, sizeof(float) * colour_columns);
        }
    });
}

// values += 1 over the whole array: the machine's read+write limit that the benchmarks compare with.
CLM_API void clm_touch(float* values, int64_t count) {
    constexpr int64_t piece = 1 << 16;
    clm::parallel((count + piece - 1) / piece, [&](int64_t chunk, int) {
        const int64_t end = std::min(count, (chunk + 1) * piece);
        for (int64_t i = chunk * piece; i < end; ++i) values[i] += 1.f;
    });
}
