// What these kernels were built with, for the test that compares it with Python's side.
#include "numbers.h"

#include <cmath>
#include <cstring>

#include "raster.h"
#include "rows.h"

namespace {

struct Named {
    const char* name;
    double value;
};

const Named kNamed[] = {
    {"GEOMETRY", clm::kGeometry},
    {"COLOUR", clm::kColour},
    {"GRAD_GEOMETRY", clm::kGradGeometry},
    {"GRAD_DRAWN", clm::kDrawnColumn},
    {"STATISTICS", clm::kStatistics},
    {"SIGMAS", clm::kExtent},
    {"BLUR", clm::kBlur},
    {"ALPHA_MIN", std::exp2(double(clm::kExponentMin))},
    {"ALPHA_MAX", clm::kAlphaMax},
    {"TRANSMITTANCE_MIN", clm::kTransmittanceMin},
    {"TILE", clm::kTile},
    {"CAMERA_FLOATS", clm::kCameraFloats},
    {"CULL_SLACK", clm::kCullSlack},
    {"sizeof AdamStep", sizeof(clm::AdamStep)},
    {"sizeof StoreView", sizeof(clm::StoreView)},
};

}  // namespace

// The number of that name; NaN where there is none.
CLM_API double clm_number(const char* name) {
    for (const Named& each : kNamed)
        if (std::strcmp(each.name, name) == 0) return each.value;
    return NAN;
}
