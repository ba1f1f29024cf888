// The rasteriser's C ABI: an opaque workspace, project and rasterize with a backward each, what tests read.
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

// Rows to splats, in order of depth. camera: Camera.packed [21]. limits: near, far, radius_clip. Returns the number of
// rows drawn, -1 when memory ran out. The arena (geometry, colour, slots) must stay unchanged until project_backward.
CLM_API int64_t clm_raster_project(void* handle, const float* geometry, const float* colour, const int32_t* slots,
                                   int64_t rows, const float* camera, int width, int height, int sh_degree,
                                   int antialiased, const float* limits) {
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
    v.near = limits[0];
    v.far = limits[1];
    v.radius_clip = limits[2];
    v.tiles_x = (width + kTile - 1) / kTile;
    v.tiles_y = (height + kTile - 1) / kTile;
    try {
        timed(ws, kProject, [&] { project(ws); });
        timed(ws, kSort, [&] { sort_by_depth(ws); });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return ws.drawn;
}

// The image of the last project's splats over background [3]; depth may be null. Returns 0, or -1 when memory ran out.
CLM_API int clm_raster_rasterize(void* handle, const float* background, float* rgb, float* alpha, float* depth) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    ws.view.has_depth = depth != nullptr;
    std::memcpy(ws.view.background, background, sizeof ws.view.background);
    try {
        timed(ws, kLists, [&] { build_lists(ws); });
        timed(ws, kForward, [&] { composite(ws, rgb, alpha, depth); });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return 0;
}

// From gradients of the last rasterize's image to those of its splats, which stay in the workspace. Returns 0, or -1 when
// memory ran out.
CLM_API int clm_raster_rasterize_backward(void* handle, const float* v_rgb, const float* v_alpha, const float* v_depth,
                                          int absgrad) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    ws.absgrad = absgrad != 0;
    try {
        timed(ws, kBackward, [&] { composite_backward(ws, {v_rgb, v_alpha, v_depth, ws.absgrad}); });
    } catch (const std::bad_alloc&) {
        return -1;
    }
    return 0;
}

// Adds to grad_geometry [*, 16] and grad_colour [*, 48] at the slots of the last project, from the splats' gradients.
CLM_API void clm_raster_project_backward(void* handle, float* grad_geometry, float* grad_colour) {
    Workspace& ws = *static_cast<Workspace*>(handle);
    timed(ws, kProjectBackward, [&] { project_backward(ws, grad_geometry, grad_colour); });
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
