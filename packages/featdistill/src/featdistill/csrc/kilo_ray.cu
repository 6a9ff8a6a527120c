// A whole picture in one launch: one thread per pixel, see kilo_ray.h for what it does.
#include "kilo_ray.h"

using namespace kilo;

namespace {

// A warp is 8 x 4 pixels and a block 8 x 16: square tiles, whose rays meet few cells.
constexpr int kTileWidth = 8, kTileHeight = 16, kThreads = kTileWidth * kTileHeight;

template <int H>
__global__ void __launch_bounds__(kThreads) draw(const __grid_constant__ Picture<H> picture) {
  __shared__ float values[H * kThreads], along[H * kThreads];
  const int thread = threadIdx.y * kTileWidth + threadIdx.x;
  const Scratch scratch{{values + thread, kThreads}, {along + thread, kThreads}};
  const int x = blockIdx.x * kTileWidth + threadIdx.x;
  const int y = blockIdx.y * kTileHeight + threadIdx.y;
  if (x < picture.request.width && y < picture.request.height) picture.draw(x, y, scratch);
}

template <int H>
int launch(const PictureRequest& request, cudaStream_t stream) {
  const dim3 tile(kTileWidth, kTileHeight);
  const dim3 tiles((request.width + kTileWidth - 1) / kTileWidth,
                   (request.height + kTileHeight - 1) / kTileHeight);
  draw<H><<<tiles, tile, 0, stream>>>(Picture<H>(request));
  return cudaGetLastError();
}

}  // namespace

extern "C" {

// Draws on `stream` and returns at once; a number other than 0 is an error.
int kilo_ray_picture(const PictureRequest* request, cudaStream_t stream) {
  if (request->hidden == 32) return launch<32>(*request, stream);
  if (request->hidden == 48) return launch<48>(*request, stream);
  return cudaErrorInvalidValue;
}

const char* kilo_ray_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // extern "C"
