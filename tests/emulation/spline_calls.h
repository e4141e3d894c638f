// Calls of rational-quadratic splines for the driver: values against the formulas written out once more, in double
// precision, and gradients against differences of those.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/rational_quadratic_spline.h"

namespace flowkernels {

// x = [passive | active] channels of `positions` elements each; raw has the numbers of a channel side by side.
struct SplineCase {
  const char* name;
  int64_t rows, passive, active, bins = 8, positions = 1;
  bool masked = false, inverse = false, circular = false;
  int64_t offset = 0;  // of raw and its gradient from a multiple of 16 bytes
};

inline const SplineCase kSplineCases[] = {
    {"spline, rows", 19, 8, 8},
    {"spline, ragged rows", 30, 2, 5, 3},
    {"spline, one element", 140, 1, 1, 1},
    {"spline, a block a row", 3, 0, 200, 4},
    {"spline, chunks", 1, 3, 16400, 1},
    {"spline, pictures", 5, 1, 3, 8, 20},
    {"spline, mask", 9, 0, 12, 8, 1, true},
    {"spline, inverse", 19, 4, 8, 8, 1, false, true},
    {"spline, even", 19, 0, 8, 8, 1, false, false, true},
    {"spline, offset", 19, 0, 8, 8, 1, false, false, false, 3},
    {"spline, many bins", 5, 0, 7, 40},
};

class SplineTrial {
 public:
  explicit SplineTrial(const SplineCase& c)
      : c_(c),
        parameters_(parameter_count(Normalization::softmax, tails(), c.bins)),
        active_(c.active * c.positions),
        width_(active_ + c.passive * c.positions) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < c.rows * width_; ++i) {
      x_.push_back(1.5f * normal(random));
      grad_.push_back(normal(random));
    }
    for (int64_t i = 0; i < c.rows * active_ * parameters_ + c.offset; ++i) raw_.push_back(normal(random));
    for (int64_t i = 0; i < c.rows; ++i) row_grad_.push_back(normal(random));
    for (int64_t i = 0; i < active_; ++i) mask_.push_back(c.masked && random() % 2);
  }

  bool right() { return forward() && backward(); }

 private:
  using Floats = std::vector<float>;
  struct Result {
    double y, log_det;
  };
  static constexpr double kBound = 3, kLeast = 1e-3;

  static Floats poisoned(size_t count) {
    Floats values(count);
    std::memset(values.data(), 0xff, count * sizeof(float));
    return values;
  }
  static bool close(double got, double expected) { return std::abs(got - expected) <= 5e-4 * (1 + std::abs(expected)); }
  static double softplus(double v) { return std::log1p(std::exp(v)); }

  Tails tails() const { return c_.circular ? Tails::circular : Tails::linear; }

  View elements(int64_t offset, int64_t row, int64_t channel) const {
    if (c_.positions == 1) return {offset, {row, 0, 0, channel}};
    return {offset, {row, 0, channel, 1}};
  }
  Extent box(int64_t channels) const {
    if (c_.positions == 1) return {{c_.rows, 1, 1, channels}};
    return {{c_.rows, 1, channels, c_.positions}};
  }
  View of_x(int64_t channel) const { return elements(channel * c_.positions, width_, c_.positions); }
  View of_raw() const { return elements(c_.offset, active_ * parameters_, parameters_ * c_.positions); }
  int64_t index(int64_t row, int64_t i, int64_t parameter) const {
    const int64_t channel = i / c_.positions, position = i % c_.positions;
    return c_.offset + (row * c_.active + channel) * parameters_ * c_.positions + parameter * c_.positions + position;
  }

  SplinePlan plan() const {
    SplinePlan p{};
    p.options.bins = c_.bins;
    p.options.tails = tails();
    p.options.inverse = c_.inverse;
    p.options.left = p.options.bottom = -kBound;
    p.options.right = p.options.top = kBound;
    p.options.min_width = p.options.min_height = p.options.min_derivative = kLeast;
    p.options.logit_scale = p.options.width_clip = p.options.derivative_clip = 1;
    p.has_mask = c_.masked;
    p.x_dtype = p.raw_dtype = Dtype::float32;
    p.active = box(c_.active);
    p.passive = box(c_.passive);
    p.raw = of_raw();
    p.raw_step = c_.positions;
    p.mask = elements(0, 0, c_.positions);
    return p;
  }

  // Of one element, whose numbers are `raw`.
  Result map(double x, const std::vector<double>& raw) const {
    if (std::abs(x) > kBound) return {x, 0};
    const std::vector<double> across = knots(raw.data()), up = knots(raw.data() + c_.bins);
    const std::vector<double>& searched = c_.inverse ? up : across;
    int64_t k = 0;
    while (k + 1 < c_.bins && x >= searched[k + 1]) ++k;
    const double w = across[k + 1] - across[k], h = up[k + 1] - up[k], s = h / w;
    const double first = derivative(raw, k), last = derivative(raw, k + 1), both = first + last - 2 * s;
    double t = (x - across[k]) / w;
    if (c_.inverse) {
      const double v = (x - up[k]) / h, a = s - first + v * both, b = first - v * both;
      t = 2 * s * v / (b + std::sqrt(b * b + 4 * a * s * v));
    }
    const double q = s + both * t * (1 - t);
    const double slope = s * s * (last * t * t + 2 * s * t * (1 - t) + first * (1 - t) * (1 - t)) / (q * q);
    if (c_.inverse) return {across[k] + w * t, -std::log(slope)};
    return {up[k] + h * (s * t * t + first * t * (1 - t)) / q, std::log(slope)};
  }
  std::vector<double> knots(const double* logits) const {
    double sum = 0;
    for (int64_t k = 0; k < c_.bins; ++k) sum += std::exp(logits[k]);
    std::vector<double> at{-kBound};
    for (int64_t k = 0; k < c_.bins; ++k)
      at.push_back(at.back() + 2 * kBound * (kLeast + (1 - c_.bins * kLeast) * std::exp(logits[k]) / sum));
    return at;
  }
  double derivative(const std::vector<double>& raw, int64_t knot) const {
    if (c_.circular) return kLeast + softplus(raw[2 * c_.bins + knot % c_.bins]);
    return knot == 0 || knot == c_.bins ? 1 : kLeast + softplus(raw[2 * c_.bins + knot - 1]);
  }

  std::vector<double> numbers(int64_t row, int64_t i) const {
    std::vector<double> raw;
    for (int64_t p = 0; p < parameters_; ++p) raw.push_back(raw_[index(row, i, p)]);
    return raw;
  }
  const void* mask() const { return c_.masked ? mask_.data() : nullptr; }

  bool forward() {
    y_ = poisoned(x_.size());
    Floats log_det = poisoned(c_.rows);
    const SplineForwardPlan p{plan(), of_x(c_.passive), of_x(c_.passive), of_x(0), of_x(0)};
    Floats workspace = poisoned(cuda::spline_forward_workspace(p) / sizeof(float));
    cuda::spline_forward(p, {x_.data(), raw_.data(), mask(), y_.data(), log_det.data()}, workspace.data(), 0, nullptr);
    const int64_t kept = c_.passive * c_.positions;
    bool right = true;
    for (int64_t row = 0; row < c_.rows; ++row) {
      const float *x = x_.data() + row * width_, *y = y_.data() + row * width_;
      right = right && std::memcmp(x, y, kept * sizeof(float)) == 0;
      double sum = 0;
      for (int64_t i = 0; i < active_; ++i) {
        const Result r = mask_[i] ? Result{x[kept + i], 0} : map(x[kept + i], numbers(row, i));
        right = right && close(y[kept + i], r.y);
        sum += r.log_det;
      }
      right = right && close(log_det[row], sum);
    }
    return right;
  }

  bool backward() {
    Floats grad_x = poisoned(x_.size()), grad_raw = poisoned(raw_.size());
    const SplineBackwardPlan p{
        plan(), of_x(c_.passive), of_x(c_.passive), of_x(c_.passive), of_raw(), of_x(0), of_x(0), c_.positions, 1};
    cuda::spline_backward(p,
                          {grad_.data(), row_grad_.data(), c_.inverse ? y_.data() : x_.data(), raw_.data(), mask(),
                           grad_x.data(), grad_raw.data()},
                          0, nullptr);
    const int64_t kept = c_.passive * c_.positions;
    bool right = true;
    for (int64_t row = 0; row < c_.rows; ++row) {
      const int64_t first = row * width_ + kept;
      right = right && std::memcmp(&grad_[row * width_], &grad_x[row * width_], kept * sizeof(float)) == 0;
      for (int64_t i = 0; i < active_; ++i) {
        std::vector<double> raw = numbers(row, i);
        double x = x_[first + i];
        const auto by = [&](double& number) {
          const double step = 1e-5, middle = number;
          number = middle + step;
          const Result above = map(x, raw);
          number = middle - step;
          const Result below = map(x, raw);
          number = middle;
          return (grad_[first + i] * (above.y - below.y) + row_grad_[row] * (above.log_det - below.log_det)) /
                 (2 * step);
        };
        right = right && close(grad_x[first + i], mask_[i] ? grad_[first + i] : by(x));
        for (int64_t k = 0; k < parameters_; ++k)
          right = right && close(grad_raw[index(row, i, k)], mask_[i] ? 0 : by(raw[k]));
      }
    }
    return right;
  }

  const SplineCase& c_;
  int64_t parameters_, active_, width_;
  Floats x_, y_, raw_, grad_, row_grad_;
  std::vector<uint8_t> mask_;
};

}  // namespace flowkernels
