// The function of one ray on the CPU, pixel after pixel: what the device computes, where tests can
// see it. Pictures for people come from kilo_image.cpp, which is built for the CPU.
#include "kilo_ray.h"

using namespace kilo;

namespace {

// Calls draw(picture, scratch) with a picture of the request's width of networks.
template <class Draw>
int with_picture(const PictureRequest& request, Draw&& draw) {
  float values[48], along[48];
  const Scratch scratch{{values, 1}, {along, 1}};
  if (request.hidden == 32) draw(Picture<32>(request), scratch);
  if (request.hidden == 48) draw(Picture<48>(request), scratch);
  return request.hidden == 32 || request.hidden == 48 ? 0 : -1;
}

}  // namespace

extern "C" {

// The signature of kilo_ray.cu; there is no stream here.
int kilo_ray_picture(const PictureRequest* request, void*) {
  return with_picture(*request, [&](const auto& picture, const Scratch& scratch) {
    for (int y = 0; y < request->height; ++y) {
      for (int x = 0; x < request->width; ++x) picture.draw(x, y, scratch);
    }
  });
}

// Any rays in place of those of a camera: origins and directions [rays, 3].
int kilo_ray_trace(const PictureRequest* request, int64_t rays, const float* origins,
                   const float* directions) {
  return with_picture(*request, [&](const auto& picture, const Scratch& scratch) {
    for (int64_t r = 0; r < rays; ++r) {
      trace(picture.volume, picture.networks, origins + 3 * r, directions + 3 * r,
            request->stop_transmittance, scratch, request->rgba + 4 * r, request->depth + r);
    }
  });
}

const char* kilo_ray_error(int) { return "networks of this width are not compiled in"; }

}  // extern "C"
