// Runs the launchers on a few calls and compares with the formulas written out once more, in double precision. Small
// enough to be compiled with a planted fault or a sanitizer; the broad comparison is in test_affine_coupling.py.
// Prints the calls that went wrong and returns their number.
#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/affine_coupling.h"
#include "elementwise_calls.h"
#include "emulation/block.h"
#include "spline_calls.h"
#include "stack_calls.h"

using namespace flowkernels;

namespace {

// x = [passive | active] channels of `positions` elements each; raw = [scale | shift].
struct Case {
  const char* name;
  int64_t rows, passive, active, positions = 1;
  bool masked = false, learned_bound = false;
  int64_t row_stride = 0;  // of x and y, where it is not the length of a row
};

const Case kCases[] = {
    {"a thread a row", 300, 1, 1},
    {"lanes", 37, 8, 24},
    {"ragged lanes", 37, 3, 29},
    {"a warp a row", 5, 0, 500},
    {"a block a row", 3, 2, 1003},
    {"chunks", 2, 1, 17000},
    {"unaligned", 7, 2, 32, 1, false, false, 36},
    {"mask", 9, 0, 40, 1, true},
    {"bound across", 200, 2, 6, 1, false, true},
    {"bound along", 5, 1, 3, 40, false, true},
    {"bound, many segments", 30, 0, 2, 100, true, true},
    {"far rows", 3, 4, 8, 1, false, false, (int64_t{1} << 31) + 64},
};

class Buffer {
 public:
  Buffer(int64_t count, bool sparse) : bytes_(count * sizeof(float)), sparse_(sparse) {
    void* const memory =
        sparse ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
               : ::operator new(bytes_);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data = static_cast<float*>(memory);
    if (!sparse) std::memset(data, 0xff, bytes_);
  }
  ~Buffer() { sparse_ ? static_cast<void>(munmap(data, bytes_)) : ::operator delete(data); }
  Buffer(const Buffer&) = delete;
  float* data;

 private:
  size_t bytes_;
  bool sparse_;
};

bool close(double got, double expected) { return std::abs(got - expected) <= 1e-4 * (1 + std::abs(expected)); }

class Call {
 public:
  explicit Call(const Case& c)
      : c_(c),
        width_((c.passive + c.active) * c.positions),
        stride_(c.row_stride ? c.row_stride : width_),
        half_(c.active * c.positions),
        x_(c.rows * stride_, far()),
        y_(c.rows * stride_, far()),
        grad_y_(c.rows * width_, false),
        grad_x_(c.rows * width_, false),
        raw_(c.rows * 2 * half_, false),
        grad_raw_(c.rows * 2 * half_, false),
        log_det_(c.rows, false),
        grad_log_det_(c.rows, false),
        bound_(c.active, false),
        grad_bound_(c.active, false),
        mask_(half_, 0) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int64_t row = 0; row < c.rows; ++row) {
      for (int64_t i = 0; i < width_; ++i) x_.data[row * stride_ + i] = normal(random);
      grad_log_det_.data[row] = normal(random);
    }
    for (int64_t i = 0; i < c.rows * width_; ++i) grad_y_.data[i] = normal(random);
    for (int64_t i = 0; i < c.rows * 2 * half_; ++i) raw_.data[i] = normal(random);
    for (int64_t i = 0; i < c.active; ++i) bound_.data[i] = 0.5f + 0.1f * i;
    for (int64_t i = 0; c.masked && i < half_; ++i) mask_[i] = i % 3 == 0;
    for (int64_t i = 0; c.masked && i < c.rows * half_; ++i)
      if (mask_[i % half_]) raw_.data[i / half_ * 2 * half_ + i % half_] = std::numeric_limits<float>::quiet_NaN();
  }

  bool right() { return forward() && backward(); }

 private:
  bool far() const { return stride_ > int64_t{1} << 30; }

  AffinePlan plan() const {
    AffinePlan p{};
    p.x_dtype = p.raw_dtype = Dtype::float32;
    p.map = c_.learned_bound ? ScaleMap::tanh : ScaleMap::exp;
    p.has_mask = c_.masked;
    p.has_bound_tensor = c_.learned_bound;
    p.bound = p.scale_factor = p.shift_factor = 1;
    p.channels = c_.learned_bound ? c_.active : 0;
    p.active = box(c_.active);
    p.passive = box(c_.passive);
    p.scale = view(0, 2 * half_);
    p.mask = view(0, 0);
    p.bound_view = c_.positions == 1 ? View{0, {0, 0, 0, 1}} : View{0, {0, 0, 1, 0}};
    return p;
  }
  // Channels and positions merge but for the bound, which keeps them apart.
  Extent box(int64_t channels) const {
    if (c_.learned_bound && c_.positions > 1) return {{c_.rows, 1, channels, c_.positions}};
    return {{c_.rows, 1, 1, channels * c_.positions}};
  }
  View view(int64_t offset, int64_t row_stride) const { return {offset, {row_stride, 0, c_.positions, 1}}; }

  double scale(int64_t row, int64_t i) const { return raw_.data[row * 2 * half_ + i]; }
  double bound(int64_t i) const { return bound_.data[i / c_.positions]; }
  double log_m(int64_t row, int64_t i) const {
    return c_.learned_bound ? bound(i) * std::tanh(scale(row, i) / bound(i)) : scale(row, i);
  }

  bool forward() {
    const int64_t kept = c_.passive * c_.positions;
    const AffineForwardPlan p{plan(),           view(kept, stride_), view(kept, stride_), view(half_, 2 * half_),
                              view(0, stride_), view(0, stride_)};
    const AffineForwardCall call{x_.data, raw_.data,    raw_.data, mask(), c_.learned_bound ? bound_.data : nullptr,
                                 y_.data, log_det_.data};
    Buffer workspace(cuda::affine_coupling_forward_workspace(p) / 4, false);
    cuda::affine_coupling_forward(p, call, workspace.data, 0, nullptr);
    bool right = true;
    for (int64_t row = 0; row < c_.rows; ++row) {
      const float *x = x_.data + row * stride_, *y = y_.data + row * stride_;
      double sum = 0;
      right = right && std::memcmp(x, y, kept * sizeof(float)) == 0;
      for (int64_t i = 0; i < half_; ++i) {
        if (mask_[i]) {
          right = right && y[kept + i] == x[kept + i];
          continue;
        }
        sum += log_m(row, i);
        right =
            right && close(y[kept + i], std::exp(log_m(row, i)) * x[kept + i] + raw_.data[row * 2 * half_ + half_ + i]);
      }
      right = right && close(log_det_.data[row], sum);
    }
    return right;
  }

  bool backward() {
    const int64_t kept = c_.passive * c_.positions;
    const AffineBackwardPlan p{plan(),
                               view(kept, width_),
                               view(kept, stride_),
                               view(kept, width_),
                               view(0, 2 * half_),
                               view(half_, 2 * half_),
                               view(0, width_),
                               view(0, width_),
                               1};
    const AffineBackwardCall call{grad_y_.data,   grad_log_det_.data,
                                  x_.data,        raw_.data,
                                  mask(),         c_.learned_bound ? bound_.data : nullptr,
                                  grad_x_.data,   grad_raw_.data,
                                  grad_raw_.data, c_.learned_bound ? grad_bound_.data : nullptr};
    Buffer workspace(cuda::affine_coupling_backward_workspace(p) / 4, false);
    cuda::affine_coupling_backward(p, call, workspace.data, 0, nullptr);
    bool right = true;
    std::vector<double> of_bound(c_.active, 0);
    for (int64_t row = 0; row < c_.rows; ++row) {
      const float *g = grad_y_.data + row * width_, *gx = grad_x_.data + row * width_;
      const float *gs = grad_raw_.data + row * 2 * half_, *gt = gs + half_;
      right = right && std::memcmp(g, gx, kept * sizeof(float)) == 0;
      for (int64_t i = 0; i < half_; ++i) {
        const double grad = g[kept + i];
        if (mask_[i]) {
          right = right && gx[kept + i] == grad && gs[i] == 0 && gt[i] == 0;
          continue;
        }
        const double m = std::exp(log_m(row, i)), h = std::tanh(scale(row, i) / bound(i)), slope = 1 - h * h;
        const double of_log_m = grad * m * x_.data[row * stride_ + kept + i] + grad_log_det_.data[row];
        right = right && close(gx[kept + i], grad * m) && close(gt[i], grad);
        right = right && close(gs[i], of_log_m * (c_.learned_bound ? slope : 1));
        of_bound[i / c_.positions] += of_log_m * (h - scale(row, i) / bound(i) * slope);
      }
    }
    for (int64_t channel = 0; c_.learned_bound && channel < c_.active; ++channel)
      right = right && close(grad_bound_.data[channel], of_bound[channel]);
    return right;
  }

  const void* mask() const { return c_.masked ? mask_.data() : nullptr; }

  Case c_;
  int64_t width_, stride_, half_;
  Buffer x_, y_, grad_y_, grad_x_, raw_, grad_raw_, log_det_, grad_log_det_, bound_, grad_bound_;
  std::vector<uint8_t> mask_;
};

}  // namespace

// Runs a call of each case and returns how many went wrong.
template <class OneCall, class Cases>
int count_wrong(const Cases& cases) {
  int wrong = 0;
  for (const auto& c : cases) {
    std::string why;
    try {
      if (!OneCall(c).right()) why = "wrong values";
    } catch (const std::exception& error) {
      why = error.what();
    }
    if (why.empty()) continue;
    ++wrong;
    std::printf("%s: %s\n", c.name, why.c_str());
  }
  return wrong;
}

int main(int argc, char**) {
  using emulation::Schedule;
  int wrong = 0;
  for (const Schedule schedule : {Schedule::forward, Schedule::reverse, Schedule::shuffled}) {
    emulation::set_schedule(schedule, 1);
    wrong += count_wrong<Call>(kCases) + count_wrong<StackCall>(kStackCases);
    wrong += count_wrong<ElementwiseTrial>(kElementwiseCases) + count_wrong<SplineTrial>(kSplineCases);
    if (argc > 1) break;  // any argument: one schedule is enough
  }
  return wrong;
}
