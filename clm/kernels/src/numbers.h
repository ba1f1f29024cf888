// Numbers that several kernels and Python share; clm/kernels/numbers.py holds the same, and a test compares them.
#pragma once

namespace clm {

constexpr int kGeometry = 12, kColour = 48, kGradGeometry = 16;  // floats of a row, of its gradient's geometry part
constexpr int kDrawnColumn = 11;  // of the latter: from here on what is no gradient, kStatistics columns that add up
constexpr int kStatistics = 4;    // views that drew the row, screen gradient, pixels and their squares, summed over views
constexpr float kExtent = 3.33f;  // the rasteriser draws at most 3.33 sigma (RASTER.md, radii)
constexpr float kBlur = 0.3f;     // px^2 on the diagonal of the projected covariance
constexpr float kAlphaMax = 0.999f;
constexpr float kTransmittanceMin = 1e-4f;
constexpr int kTile = 16;            // px
constexpr int kCameraFloats = 32;    // of a camera to cull with: 6 planes of 4, then |t|_1, then padding
constexpr float kCullSlack = 2e-6f;  // of |p|_1 + |t|_1, see clm/plan/visibility.py

}  // namespace clm
