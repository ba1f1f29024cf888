// Rows in motion: catch up + gather, arena placement, gradient send-back. Adam itself is in adam.cpp.
#include <cstring>

#include "stir.h"

using namespace clm;

// A row's gradient in the arena before any view has added to it.
static void zero_gradients(float* grad_geometry, float* grad_colour, int64_t slot, int columns) {
    std::memset(grad_geometry + slot * kGradGeometry, 0, sizeof(float) * kGradGeometry);
    std::memset(grad_colour + slot * kColour, 0, sizeof(float) * columns);
}

// One row as it is after step - 1; the store is not changed.
static void exact_row(const StoreView& s, const AdamStep* a, int64_t row, int columns, float* geometry, float* colour) {
    std::memcpy(geometry, s.geometry + row * kGeometry, sizeof(float) * kGeometry);
    std::memcpy(colour, s.colour + row * kColour, sizeof(float) * columns);
    const int stamp = a != nullptr && s.m_geometry != nullptr ? s.stamp[row] : 0;
    if (stamp == 0 || stamp == a->step - 1) return;  // stamp 0: never had a gradient, the moments are zero
    with_moments(s, [&](auto type) {
        catch_up(*a, stamp, a->step - 1, Moments<decltype(type)>(s, row), geometry, colour, columns);
    });
}

// Copies rows, caught up to step - 1, to out[slots[i]] (or out[i]). Colour rows of the target lie colour_stride values
// apart: staging packs the active columns, so that one contiguous copy moves nothing else. A step with bf16_colours
// rounds them; colour_bytes 2: the target takes what was rounded as bf16. Gradient rows at the same places start at zero
// (null: there are none).
CLM_API void clm_fetch(const StoreView* s, const AdamStep* a, const int32_t* rows, const int32_t* slots, int64_t count,
                       float* out_geometry, void* out_colour, int32_t colour_columns, int32_t colour_stride,
                       int32_t colour_bytes, float* grad_geometry, float* grad_colour) {
    const bool rounded = a != nullptr && a->bf16_colours, moments = a != nullptr && s->m_geometry != nullptr;
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (i + kAhead < end) {
                const int64_t ahead = rows[i + kAhead];
                prefetch_row(*s, ahead, colour_columns);
                if (moments && s->stamp[ahead] != 0 && s->stamp[ahead] != a->step - 1)
                    with_moments(*s, [&](auto type) { prefetch_moments<decltype(type)>(*s, ahead, colour_columns); });
            }
            const int64_t row = rows[i], to = slots ? slots[i] : i;
            float* geometry = out_geometry + to * kGeometry;
            if (colour_bytes == 2) {
                float exact[kColour];
                exact_row(*s, a, row, colour_columns, geometry, exact);
                round_colours(exact, static_cast<bf16*>(out_colour) + to * colour_stride, colour_columns);
            } else {
                float* colour = static_cast<float*>(out_colour) + to * colour_stride;
                exact_row(*s, a, row, colour_columns, geometry, colour);
                if (rounded) round_colours(colour, colour, colour_columns);
            }
            if (grad_geometry) zero_gradients(grad_geometry, grad_colour, to, colour_columns);
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

// Staging to arena: rows go to their slots, gradient rows start at zero.
// staging_bytes 2: staged colours are bf16.
CLM_API void clm_place(const float* staging_geometry, const void* staging_colour, int32_t staging_stride,
                       int32_t staging_bytes, const int32_t* slots, int64_t count, float* geometry, float* colour, float* grad_geometry,
                       float* grad_colour, int32_t colour_columns) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t slot = slots[i];
            std::memcpy(geometry + slot * kGeometry, staging_geometry + i * kGeometry, sizeof(float) * kGeometry);
            const int64_t from = i * staging_stride;
            if (staging_bytes == 2)
                expand_colours(static_cast<const bf16*>(staging_colour) + from, colour + slot * kColour, colour_columns);
            else
                std::memcpy(colour + slot * kColour, static_cast<const float*>(staging_colour) + from,
                            sizeof(float) * colour_columns);
            zero_gradients(grad_geometry, grad_colour, slot, colour_columns);
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
