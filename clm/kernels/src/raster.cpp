// The rasteriser's C ABI: an opaque workspace, forward, backward, what tests and trainers read from it.
#include "raster.h"

#include <chrono>
#include <cstring>

using namespace clm;

namespace {

template <class F>
void timed(Workspace& ws, Stage stage, F&& f) {
    auto start = std::chrono::steady_clock::now();
    f();
    ws.seconds[stage] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

CLM_API void* clm_raster_create() { return new (std::nothrow) Workspace(); }
CLM_API void clm_raster_destroy(void* handle) { delete static_cast<Workspace*>(handle); }

// camera: Camera.packed [21]. options: near, far, radius_clip, background rgb. Returns the number of rows drawn, -1
// when memory ran out. The arena (geometry, colour, slots) must stay unchanged until the backward pass of this view.
CLM_API int64_t clm_raster_forward(void* handle, const float* geometry, const float* colour, const int32_t* slots,
                                   int64_t rows, const float* camera, int width, int height, int sh_degree,
                                   int antialiased, const float* options, float* rgb, float* alpha, float* depth) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    View& v = ws.view;
    v.geometry = geometry;
    v.colour = colour;
    v.slots = slots;
    v.rows = rows;
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
    v.has_depth = depth != nullptr;
    v.near = options[0];
    v.far = options[1];
    v.radius_clip = options[2];
    std::memcpy(v.background, options + 3, sizeof v.background);
    v.tiles_x = (width + kTile - 1) / kTile;
    v.tiles_y = (height + kTile - 1) / kTile;
    try {
        timed(ws, kProject, [&] { project(ws); });
        timed(ws, kSort, [&] { sort_by_depth(ws); });
        timed(ws, kLists, [&] { build_lists(ws); });
        timed(ws, kForward, [&] { composite(ws, rgb, alpha, depth); });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return ws.drawn;
}

// Adds to grad_geometry [*, 16] and grad_colour [*, 48] at the slots of the last forward pass. Returns 0, or -1 when
// memory ran out.
CLM_API int clm_raster_backward(void* handle, const float* v_rgb, const float* v_alpha, const float* v_depth,
                                int absgrad, float* grad_geometry, float* grad_colour) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    Cotangents v{v_rgb, v_alpha, v_depth, absgrad != 0};
    try {
        timed(ws, kBackward, [&] { composite_backward(ws, v); });
        timed(ws, kProjectBackward, [&] { project_backward(ws, v, grad_geometry, grad_colour); });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return 0;
}

// radii [rows, 2] i32, means2d [rows, 2] f32 (meaningless where radii are 0).
CLM_API void clm_raster_read(void* handle, int32_t* radii, float* means2d) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    for (int64_t i = 0; i < ws.view.rows; ++i) {
        radii[2 * i] = ws.radii[2 * i];
        radii[2 * i + 1] = ws.radii[2 * i + 1];
        means2d[2 * i] = ws.records[i].mx;
        means2d[2 * i + 1] = ws.records[i].my;
    }
}

// Bytes of the workspace that views have used so far; buffers only grow.
CLM_API int64_t clm_raster_bytes(void* handle) { return static_cast<Workspace*>(handle)->bytes(); }

CLM_API int64_t clm_raster_pairs(void* handle) { return static_cast<Workspace*>(handle)->pairs; }

// Seconds of the last call of each stage: project, sort, lists, forward, backward, project backward.
CLM_API void clm_raster_seconds(void* handle, double* out) {
    std::memcpy(out, static_cast<Workspace*>(handle)->seconds, sizeof(double) * kStages);
}
