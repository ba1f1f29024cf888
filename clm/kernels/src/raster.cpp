// The rasteriser's C ABI: an opaque workspace; begin, then project and rasterize with a backward each; what tests read.
#include "raster.h"

#include <chrono>
#include <cstring>

using namespace clm;

namespace {

template <class F>
void timed(Workspace& ws, Stage stage, F&& f) {
    auto start = std::chrono::steady_clock::now();
    f();
    ws.seconds[stage] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

CLM_API void* clm_raster_create() { return new (std::nothrow) Workspace(); }
CLM_API void clm_raster_destroy(void* handle) { delete static_cast<Workspace*>(handle); }

// A view without rows. camera: Camera.packed [21]. limits: near, far, radius_clip. band_bytes: what tile lists may take at
// a time; below 0 no limit.
CLM_API void clm_raster_begin(void* handle, const float* camera, int width, int height, int sh_degree, int antialiased,
                              const float* limits, int64_t band_bytes) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    View& v = ws.view;
    std::memcpy(v.w2c, camera, sizeof v.w2c);
    v.fx = camera[12];
    v.fy = camera[13];
    v.cx = camera[14];
    v.cy = camera[15];
    v.image_width = width;
    v.image_height = height;
    v.width = float(width);
    v.height = float(height);
    std::memcpy(v.centre, camera + 18, sizeof v.centre);
    v.sh_degree = sh_degree;
    v.antialiased = antialiased != 0;
    v.near = limits[0];
    v.far = limits[1];
    v.radius_clip = limits[2];
    v.tiles_x = (width + kTile - 1) / kTile;
    v.tiles_y = (height + kTile - 1) / kTile;
    ws.rows = ws.drawn = ws.pairs = 0;
    ws.identified = ws.sorted = false;
    // What was grown without the limit is not kept under it.
    if (band_bytes >= 0 && ws.list_bytes() > band_bytes) ws.release_lists();
    ws.band_bytes = band_bytes;
    ws.seconds[kProject] = ws.seconds[kProjectBackward] = 0;
}

// Appends the splats of a piece, its rows in order. Returns how many of them are drawn, -1 when memory ran out (and nothing
// was appended).
CLM_API int64_t clm_raster_project(void* handle, const float* geometry, const float* colour, const int32_t* slots,
                                   int64_t rows) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    int64_t drawn = 0;
    try {
        timed(ws, kProject, [&] { drawn = project(ws, {geometry, colour, slots, rows, ws.rows}); });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return drawn;
}

// The image of the view's splats over background [3]; depth may be null. Returns 0, or -1 when memory ran out.
CLM_API int clm_raster_rasterize(void* handle, const float* background, float* rgb, float* alpha, float* depth) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    ws.view.has_depth = depth != nullptr;
    std::memcpy(ws.view.background, background, sizeof ws.view.background);
    for (Stage stage : {kSort, kLists, kForward}) ws.seconds[stage] = 0;
    ws.pairs = 0;
    try {
        timed(ws, kSort, [&] {
            if (!ws.sorted) sort_by_depth(ws);
        });
        timed(ws, kLists, [&] { choose_bands(ws); });
        for (Span band : ws.bands) {
            timed(ws, kLists, [&] { build_lists(ws, band); });
            timed(ws, kForward, [&] { composite(ws, rgb, alpha, depth, depth != nullptr); });
            ws.pairs += ws.band_pairs;
        }
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return 0;
}

// From gradients of the last rasterize's image to those of its splats, which stay in the workspace; counted: also how many
// pixels they explain, 0 otherwise. Returns 0, or -1 when memory ran out.
CLM_API int clm_raster_rasterize_backward(void* handle, const float* v_rgb, const float* v_alpha, const float* v_depth,
                                          int absgrad, int counted) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    ws.absgrad = absgrad != 0;
    ws.moments_of = v_depth ? kDeepMoments : kMoments;
    ws.summed = ws.bands.size() > 1;
    ws.seconds[kBackward] = 0;
    const Cotangents v{v_rgb, v_alpha, v_depth, ws.absgrad, counted != 0};
    try {
        timed(ws, kBackward, [&] {
            if (!ws.summed) return composite_backward(ws, v);
            clear_sums(ws);
            for (Span band : ws.bands) {  // a band's lists and state are made again, its image is not
                build_lists(ws, band);
                composite(ws, nullptr, nullptr, nullptr, ws.view.has_depth);
                composite_backward(ws, v);
                add_to_sums(ws);
            }
        });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return 0;
}

// Adds to grad_geometry [*, 16] and grad_colour [*, 48] at the slots of a piece, whose first row is the view's row `first`,
// from the splats' gradients.
CLM_API void clm_raster_project_backward(void* handle, const float* geometry, const float* colour, const int32_t* slots,
                                         int64_t rows, int64_t first, float* grad_geometry, float* grad_colour) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    timed(ws, kProjectBackward,
          [&] { project_backward(ws, {geometry, colour, slots, rows, first}, grad_geometry, grad_colour); });
}

// radii [rows, 2] i32, means2d [rows, 2] f32 (meaningless where radii are 0).
CLM_API void clm_raster_read(void* handle, int32_t* radii, float* means2d) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    for (int64_t i = 0; i < ws.rows; ++i) {
        radii[2 * i] = ws.radii[2 * i];
        radii[2 * i + 1] = ws.radii[2 * i + 1];
        means2d[2 * i] = ws.records[i].mx;
        means2d[2 * i + 1] = ws.records[i].my;
    }
}

// Bytes of splats [0] and of tile lists [1] that views have used so far; buffers only grow, but for a limit on lists.
CLM_API void clm_raster_bytes(void* handle, int64_t* out) {
    out[0] = static_cast<Workspace*>(handle)->splat_bytes();
    out[1] = static_cast<Workspace*>(handle)->list_bytes();
}

// (tile, row) pairs and bands of the last rasterize.
CLM_API int64_t clm_raster_pairs(void* handle) { return static_cast<Workspace*>(handle)->pairs; }
CLM_API int64_t clm_raster_bands(void* handle) { return int64_t(static_cast<Workspace*>(handle)->bands.size()); }

// Seconds of each stage of the last view: project, sort, lists, forward, backward, project backward.
CLM_API void clm_raster_seconds(void* handle, double* out) {
    std::memcpy(out, static_cast<Workspace*>(handle)->seconds, sizeof(double) * kStages);
}
