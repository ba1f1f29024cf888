// L1 + SSIM of an image against an 8-bit photo, with the gradient: separable 11-tap blurs over strips of rows.
//
// Pass 1 blurs x, t, x^2 + t^2 and x t (SSIM needs no more), writes dSSIM/dmu, dSSIM/dE[x^2+t^2], dSSIM/dE[xt].
// Pass 2 blurs those three maps and forms the gradient. Strips are fixed, partial sums are added in strip order: the
// result is bitwise equal for any thread count. Scratch belongs to the caller; rows are padded with zeros.
#include <cmath>
#include <cstring>
#include <utility>

#include "pool.h"
#include "simd.h"

namespace clm {
namespace {

constexpr int kStrip = 32, kTaps = 11, kHalf = 5, kPad = 16;
constexpr int kPair = 2, kRing = kTaps + kPair - 1;  // rows that are blurred together, and the rows that they read
constexpr int kQuantities = 4;  // x, t, x^2 + t^2, x t
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

struct Taps {
    float w[kTaps];
    Taps() {
        double sum = 0, g[kTaps];
        for (int i = 0; i < kTaps; ++i) sum += g[i] = std::exp(-(i - kHalf) * (i - kHalf) / (2 * 1.5 * 1.5));
        for (int i = 0; i < kTaps; ++i) w[i] = float(g[i] / sum);
    }
};
const Taps kWindow;

// Floats from one padded row to the next; never a multiple of 4 KB, where loads and stores would falsely alias.
int64_t stride_of(int64_t width) {
    int64_t stride = (width + 15) / 16 * 16 + 2 * kPad;
    return stride % 256 == 0 ? stride + 16 : stride;
}

struct Image {
    const float* rgb;       // [3, H, W]
    const uint8_t* target;  // [H, W, 3]
    const uint8_t* mask;    // [H, W] or null
    int64_t height, width, stride;
    bool clamped;           // x clamped to [0, 1]
};

int64_t strips_of(int64_t height) { return (height + kStrip - 1) / kStrip; }
// Scratch of one worker: a ring of rows, a pair of blurred rows, a row of zeros, x and t of one row.
int64_t worker_floats(int64_t stride) { return ((kRing + kPair) * kQuantities + 3) * stride; }

// Zeroes what surrounds the pixels of one padded row, so that blurs may read over the edges.
inline void clear_padding(float* row, int64_t width, int64_t stride) {
    std::memset(row, 0, kPad * sizeof(float));
    std::memset(row + kPad + width, 0, size_t(stride - kPad - width) * sizeof(float));
}

void clear_worker(const Image& im, float* scratch) {
    const int64_t rows = worker_floats(im.stride) / im.stride;
    for (int64_t r = 0; r < rows; ++r) clear_padding(scratch + r * im.stride, im.width, im.stride);
}

// Masked x and t of one row, as floats; the padding stays zero.
void load_row(const Image& im, int channel, int64_t y, float* x, float* t) {
    const int64_t width = im.width;
    std::memcpy(x, im.rgb + (channel * im.height + y) * width, size_t(width) * sizeof(float));
    const uint8_t* photo = im.target + y * width * 3 + channel;
    for (int64_t i = 0; i < width; ++i) t[i] = float(photo[3 * i]) * (1.0f / 255.0f);
    if (im.clamped)
        for (int64_t i = 0; i < width; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i] > 1.0f ? 1.0f : x[i];
    if (im.mask) {
        const uint8_t* m = im.mask + y * width;
        for (int64_t i = 0; i < width; ++i)
            if (!m[i]) x[i] = t[i] = 0.0f;
    }
}

// Fills one ring row: quantities at 0, stride, 2 stride, 3 stride.
void fill_ring(const Image& im, int channel, int64_t y, float* row) {
    const int64_t s = im.stride;
    float *x = row + kPad, *t = row + s + kPad, *squares = row + 2 * s + kPad, *product = row + 3 * s + kPad;
    if (y < 0 || y >= im.height) {
        std::memset(row, 0, size_t(kQuantities * s) * sizeof(float));
        return;
    }
    load_row(im, channel, y, x, t);
    for (int64_t i = 0; i < im.width; i += W) {
        vf a = load<vf>(x + i), b = load<vf>(t + i);
        store(squares + i, fma(a, a, b * b));
        store(product + i, a * b);
    }
}

// out[n] = sum_k w_k rows[n + k] for a pair of rows n, or the first of it: what both read is loaded once. The window is symmetric.
template <int kCount>
CLM_INLINE void blur_rows(const float* const (&rows)[kRing], int64_t width, float* out, int64_t next) {
    for (int64_t i = 0; i < width; i += W) {
        vf in[kTaps + kCount - 1];
        for (int k = 0; k < kTaps + kCount - 1; ++k) in[k] = load<vf>(rows[k] + i);
        for (int n = 0; n < kCount; ++n) {
            vf sum = in[n + kHalf] * kWindow.w[kHalf];
            for (int k = 0; k < kHalf; ++k)
                sum = fma(splat<vf>(kWindow.w[k]), in[n + k] + in[n + kTaps - 1 - k], sum);
            store(out + n * next + i, sum);
        }
    }
}

CLM_INLINE void blur_some(int count, const float* const (&rows)[kRing], int64_t width, float* out, int64_t next) {
    if (count == kPair)
        blur_rows<kPair>(rows, width, out, next);
    else
        blur_rows<1>(rows, width, out, next);
}

template <int... k>
CLM_INLINE vf blur_along(const Neighbours<vf>& row, std::integer_sequence<int, k...>) {
    vf sum = row.template at<0>() * kWindow.w[kHalf];
    ((sum = fma(splat<vf>(kWindow.w[kHalf - 1 - k]), row.template at<-1 - k>() + row.template at<1 + k>(), sum)), ...);
    return sum;
}

CLM_INLINE vf blur_along(const float* at) {
    return blur_along(Neighbours<vf>(at), std::make_integer_sequence<int, kHalf>());
}

CLM_INLINE vi lanes_below(int64_t count) { return iota<vf>() < splat<vf>(float(count)); }

struct Sums {
    double l1 = 0, ssim = 0, squared = 0;
};

// The lanes of `row` that count: inside the image and, for metrics, kept by the mask.
CLM_INLINE vi counted(const Image& im, int64_t y, int64_t i) {
    vi in = lanes_below(im.width - i);
    if (im.mask && im.clamped)
        for (int k = 0; k < W && i + k < im.width; ++k) in[k] &= im.mask[y * im.width + i + k] ? -1 : 0;
    return in;
}

// One row of SSIM from its blurred quantities; with kMaps also the three derivative maps.
template <bool kMaps>
void ssim_row(const Image& im, int64_t y, const float* blurred, const float* x, const float* t, float* const* maps,
              Sums& sums) {
    const int64_t s = im.stride;
    vf ssim_sum{}, l1_sum{}, squared_sum{};
    for (int64_t i = 0; i < im.width; i += W) {
        vi in = counted(im, y, i);
        const float* at = blurred + kPad + i;
        vf m1 = blur_along(at), m2 = blur_along(at + s);
        vf squares = blur_along(at + 2 * s), product = blur_along(at + 3 * s);
        vf m12 = m1 * m2, mm = fma(m1, m1, m2 * m2);
        vf a = 2.0f * m12 + kC1, b = 2.0f * (product - m12) + kC2, c = mm + kC1, d = squares - mm + kC2;
        vf inv_c = 1.0f / c, inv_d = 1.0f / d, inv = inv_c * inv_d, ssim = a * b * inv;
        ssim_sum += keep(in, ssim);
        vf difference = load<vf>(x + i) - load<vf>(t + i);
        l1_sum += keep(in, vabs(difference));
        squared_sum += keep(in, difference * difference);
        if (kMaps) {
            vf by_mean = 2.0f * (m2 * (b - a) * inv - ssim * m1 * (inv_c - inv_d));
            store(maps[0] + i, keep(in, by_mean));
            store(maps[1] + i, keep(in, -ssim * inv_d));
            store(maps[2] + i, keep(in, 2.0f * a * inv));
        }
    }
    sums.ssim += double(sum(ssim_sum));
    sums.l1 += double(sum(l1_sum));
    sums.squared += double(sum(squared_sum));
}

template <bool kMaps>
Sums ssim_strip(const Image& im, int channel, int64_t strip, float* scratch, float* maps) {
    const int64_t s = im.stride, begin = strip * kStrip, end = begin + kStrip < im.height ? begin + kStrip : im.height;
    float *ring = scratch, *blurred = ring + kRing * kQuantities * s;
    clear_worker(im, scratch);
    auto slot = [&](int64_t y) { return ring + (y - begin + kRing) % kRing * kQuantities * s; };
    for (int64_t y = begin - kHalf; y < begin + kHalf; ++y) fill_ring(im, channel, y, slot(y));
    Sums sums;
    for (int64_t pair = begin; pair < end; pair += kPair) {
        const int count = end - pair < kPair ? int(end - pair) : kPair;
        for (int n = 0; n < count; ++n) fill_ring(im, channel, pair + n + kHalf, slot(pair + n + kHalf));
        for (int q = 0; q < kQuantities; ++q) {
            const float* rows[kRing];
            for (int k = 0; k < kRing; ++k) rows[k] = slot(pair + k - kHalf) + q * s + kPad;
            blur_some(count, rows, im.width, blurred + q * s + kPad, kQuantities * s);
            // Lanes past the image hold zeros before the horizontal blur: their inputs are the zero padding.
        }
        for (int n = 0; n < count; ++n) {
            const int64_t y = pair + n;
            float* out[3] = {};
            for (int m = 0; kMaps && m < 3; ++m) {
                float* row = maps + ((m * 3 + channel) * im.height + y) * s;
                clear_padding(row, im.width, s);
                out[m] = row + kPad;
            }
            const float* centre = slot(y) + kPad;
            ssim_row<kMaps>(im, y, blurred + n * kQuantities * s, centre, centre + s, out, sums);
        }
    }
    return sums;
}

// One row of dL/dx from its blurred maps.
void gradient_row(const Image& im, int64_t y, const float* blurred, const float* x, const float* t, vf l1_scale,
                  vf ssim_scale, float* out) {
    const int64_t s = im.stride;
    for (int64_t i = 0; i < im.width; i += W) {
        const float* at = blurred + kPad + i;
        vf a = load<vf>(x + i), b = load<vf>(t + i), difference = a - b;
        vf by_ssim = fma(2.0f * a, blur_along(at + s), fma(b, blur_along(at + 2 * s), blur_along(at)));
        vf sign = keep(difference > vf{}, l1_scale) - keep(difference < vf{}, l1_scale);
        vf v = fma(ssim_scale, by_ssim, sign);
        int64_t n = im.width - i < W ? im.width - i : W;
        if (n == W)
            store(out + i, v);
        else
            std::memcpy(out + i, &v, size_t(n) * sizeof(float));
    }
    const uint8_t* mask = im.mask ? im.mask + y * im.width : nullptr;
    for (int64_t i = 0; mask && i < im.width; ++i)
        if (!mask[i]) out[i] = 0.0f;
}

void gradient_strip(const Image& im, int channel, int64_t strip, const float* maps, float weight, float* scratch,
                    float* v_rgb) {
    const int64_t s = im.stride, begin = strip * kStrip, end = begin + kStrip < im.height ? begin + kStrip : im.height;
    float *blurred = scratch + kRing * kQuantities * s, *zeros = blurred + kPair * kQuantities * s;
    float *x = zeros + s + kPad, *t = x + s;
    clear_worker(im, scratch);
    std::memset(zeros, 0, size_t(s) * sizeof(float));
    const double count = 3.0 * double(im.height) * double(im.width);
    const vf l1_scale = splat<vf>(float((1.0 - weight) / count)), ssim_scale = splat<vf>(float(-weight / count));
    for (int64_t pair = begin; pair < end; pair += kPair) {
        const int count = end - pair < kPair ? int(end - pair) : kPair;
        for (int m = 0; m < 3; ++m) {
            const float* rows[kRing];
            for (int k = 0; k < kRing; ++k) {
                int64_t from = pair + k - kHalf;
                bool inside = from >= 0 && from < im.height;
                rows[k] = (inside ? maps + ((m * 3 + channel) * im.height + from) * s : zeros) + kPad;
            }
            blur_some(count, rows, im.width, blurred + m * s + kPad, kQuantities * s);
        }
        for (int n = 0; n < count; ++n) {
            const int64_t y = pair + n;
            load_row(im, channel, y, x, t);
            gradient_row(im, y, blurred + n * kQuantities * s, x, t, l1_scale, ssim_scale,
                         v_rgb + (channel * im.height + y) * im.width);
        }
    }
}

template <bool kMaps>
Sums ssim_pass(const Image& im, float* workers, float* maps, Sums* parts) {
    const int64_t strips = strips_of(im.height), per_worker = worker_floats(im.stride);
    parallel(3 * strips, [&](int64_t chunk, int worker) {
        parts[chunk] = ssim_strip<kMaps>(im, int(chunk / strips), chunk % strips, workers + worker * per_worker, maps);
    });
    Sums total;
    for (int64_t chunk = 0; chunk < 3 * strips; ++chunk) {
        total.l1 += parts[chunk].l1;
        total.ssim += parts[chunk].ssim;
        total.squared += parts[chunk].squared;
    }
    return total;
}

}  // namespace
}  // namespace clm

using namespace clm;

namespace {
int64_t parts_floats(int64_t height) { return (3 * strips_of(height) * int64_t(sizeof(Sums)) / 4 + 15) / 16 * 16; }
}  // namespace

// Floats of scratch that clm_loss and clm_metrics need; its content does not matter.
CLM_API int64_t clm_loss_scratch(int64_t height, int64_t width) {
    int64_t stride = stride_of(width);
    return parts_floats(height) + 9 * height * stride + thread_count() * worker_floats(stride);
}

// out: total, l1, ssim. v_rgb [3, H, W] is overwritten with the gradient of total = (1-w) l1 + w (1-ssim).
CLM_API void clm_loss(const float* rgb, const uint8_t* target, const uint8_t* mask, int64_t height, int64_t width,
                      double weight, float* scratch, double* out, float* v_rgb) {
    Image im{rgb, target, mask, height, width, stride_of(width), false};
    Sums* parts = reinterpret_cast<Sums*>(scratch);
    float* maps = scratch + parts_floats(height);
    float* workers = maps + 9 * height * im.stride;
    Sums total = ssim_pass<true>(im, workers, maps, parts);
    const int64_t strips = strips_of(height), per_worker = worker_floats(im.stride);
    parallel(3 * strips, [&](int64_t chunk, int worker) {
        float* own = workers + worker * per_worker;
        gradient_strip(im, int(chunk / strips), chunk % strips, maps, float(weight), own, v_rgb);
    });
    const double count = 3.0 * double(height) * double(width);
    out[1] = total.l1 / count;
    out[2] = total.ssim / count;
    out[0] = (1.0 - weight) * out[1] + weight * (1.0 - out[2]);
}

// out: sum of squared errors and sum of SSIM over the kept pixels (three channels), image clamped to [0, 1].
CLM_API void clm_metrics(const float* rgb, const uint8_t* target, const uint8_t* mask, int64_t height, int64_t width,
                         float* scratch, double* out) {
    Image im{rgb, target, mask, height, width, stride_of(width), true};
    float* workers = scratch + parts_floats(height) + 9 * height * im.stride;
    Sums total = ssim_pass<false>(im, workers, nullptr, reinterpret_cast<Sums*>(scratch));
    out[0] = total.squared;
    out[1] = total.ssim;
}
