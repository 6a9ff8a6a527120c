// Pictures of a batch: each frame is read from the store's file and its path is laid over it, or on
// black beside it, while it is still in the cache. The readable twin is data/pictures.py.
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t kPixelBytes = 7;  // of a layer: a pixel number (uint32) and its colour

bool read_whole(int file, uint8_t* out, int64_t size, int64_t at) {
  while (size > 0) {
    const ssize_t got = pread(file, out, size, at);
    if (got <= 0) return false;
    out += got, at += got, size -= got;
  }
  return true;
}

// A layer is all its pixel numbers, then all its colours.
bool paint(const std::vector<uint8_t>& layer, int64_t bytes, uint8_t* picture, int64_t pixels) {
  const int64_t count = bytes / kPixelBytes;
  const uint8_t* colour = layer.data() + 4 * count;
  for (int64_t k = 0; k < count; ++k) {
    uint32_t place;
    std::memcpy(&place, layer.data() + 4 * k, 4);
    if (place >= pixels) return false;
    std::memcpy(picture + 3 * int64_t(place), colour + 3 * k, 3);
  }
  return true;
}

}  // namespace

extern "C" {

// Picture i begins at out + i * stride: the frame of rows[i], `pixels` times 3 bytes, and behind it,
// if `beside`, its path on black. `offset` says where each row's layer begins in the file `layers`;
// without layers it is null. Returns -1, or the first i that cannot be read.
int64_t read_pictures(int frames, int layers, const int64_t* offset, const int64_t* rows,
                      int64_t count, uint8_t* out, int64_t stride, int64_t pixels, int beside) {
  std::vector<uint8_t> layer;
  for (int64_t i = 0; i < count; ++i) {
    uint8_t* picture = out + i * stride;
    if (!read_whole(frames, picture, 3 * pixels, 3 * pixels * rows[i])) return i;
    if (beside) std::memset(picture += 3 * pixels, 0, 3 * pixels);
    if (!offset) continue;
    const int64_t at = offset[rows[i]], bytes = offset[rows[i] + 1] - at;
    if (int64_t(layer.size()) < bytes) layer.resize(bytes);
    if (!read_whole(layers, layer.data(), bytes, at)) return i;
    if (!paint(layer, bytes, picture, pixels)) return i;
  }
  return -1;
}
}
