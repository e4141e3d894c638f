#include "cpu/squeeze.h"

#include "cpu/memory.h"
#include "cpu/tiles.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

template <bool back, class T>
FK_INLINE void move(T& of_picture, T& of_squeezed) {
  if constexpr (back) {
    of_picture = of_squeezed;
  } else {
    of_squeezed = of_picture;
  }
}

// Neighbours in a line of the picture belong to two channels. Lines are short: a constant length halves the time.
template <bool back, int64_t known, class T>
FK_INLINE void move_line(T* __restrict line, T* __restrict left, T* __restrict right, int64_t columns) {
  const int64_t count = known > 0 ? known : columns;
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    move<back>(line[2 * j], left[j]);
    move<back>(line[2 * j + 1], right[j]);
  }
}

// Lines of pixels whose neighbours are of one channel; `known` columns, or 0.
template <bool back, int64_t known, class T>
void move_planes(const Squeeze& plan, T* picture, T* squeezed) {
  const PictureStrides &from = plan.picture, &to = plan.squeezed;
  const int64_t planes = plan.rows * plan.channels;
#pragma omp parallel for schedule(static) if (4 * planes * plan.lines * plan.columns >= kThreadedElements)
  for (int64_t p = 0; p < planes; ++p) {
    const int64_t row = p / plan.channels, channel = p % plan.channels;
    T* plane = picture + row * from.row + channel * from.channel;
    T* four = squeezed + row * to.row + 4 * channel * to.channel;
    for (int64_t i = 0; i < 2 * plan.lines; ++i) {
      T* left = four + 2 * (i % 2) * to.channel + i / 2 * to.line;
      move_line<back, known>(plane + i * from.line, left, left + to.channel, plan.columns);
    }
  }
}

// Pixels whose channels are neighbours.
template <bool back, class T>
void move_pixels(const Squeeze& plan, T* picture, T* squeezed) {
  const PictureStrides &from = plan.picture, &to = plan.squeezed;
  const int64_t lines = plan.rows * plan.lines;
#pragma omp parallel for schedule(static) if (4 * lines * plan.columns * plan.channels >= kThreadedElements)
  for (int64_t l = 0; l < lines; ++l) {
    const int64_t row = l / plan.lines, line = l % plan.lines;
    for (int64_t j = 0; j < plan.columns; ++j) {
      T* __restrict upper = picture + row * from.row + 2 * line * from.line + 2 * j * from.column;
      T* __restrict lower = upper + from.line;
      T* __restrict pixel = squeezed + row * to.row + line * to.line + j * to.column;
      const int64_t right = from.column;
#pragma omp simd
      for (int64_t c = 0; c < plan.channels; ++c) {
        move<back>(upper[c], pixel[4 * c]);
        move<back>(upper[right + c], pixel[4 * c + 1]);
        move<back>(lower[c], pixel[4 * c + 2]);
        move<back>(lower[right + c], pixel[4 * c + 3]);
      }
    }
  }
}

template <bool back, class T>
void move_elements(const Squeeze& plan, const SqueezeCall& call) {
  T *picture = static_cast<T*>(call.picture), *squeezed = static_cast<T*>(call.squeezed);
  if (plan.picture.column != 1) return move_pixels<back>(plan, picture, squeezed);
  switch (plan.columns) {  // of digits, and of squares with a power of two
    case 4:
      return move_planes<back, 4>(plan, picture, squeezed);
    case 7:
      return move_planes<back, 7>(plan, picture, squeezed);
    case 8:
      return move_planes<back, 8>(plan, picture, squeezed);
    case 14:
      return move_planes<back, 14>(plan, picture, squeezed);
    case 16:
      return move_planes<back, 16>(plan, picture, squeezed);
    default:
      return move_planes<back, 0>(plan, picture, squeezed);
  }
}

template <class T>
void move_either_way(const Squeeze& plan, const SqueezeCall& call) {
  advise_huge_pages(call.back ? call.picture : call.squeezed,
                    4 * plan.rows * plan.channels * plan.lines * plan.columns * sizeof(T));
  if (call.back) return move_elements<true, T>(plan, call);
  move_elements<false, T>(plan, call);
}

}  // namespace

void squeeze(const Squeeze& plan, const SqueezeCall& call) {
  switch (plan.element_size) {
    case 1:
      return move_either_way<uint8_t>(plan, call);
    case 2:
      return move_either_way<uint16_t>(plan, call);
    case 4:
      return move_either_way<uint32_t>(plan, call);
    default:
      return move_either_way<uint64_t>(plan, call);
  }
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
