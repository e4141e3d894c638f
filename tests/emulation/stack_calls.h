// Calls of planar and radial flows for the driver: values against the formulas written out once more, gradients against
// differences of them, in double precision.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/stack.h"

namespace flowkernels {

struct StackCase {
  const char* name;
  bool planar;
  int64_t rows, features, depth;
  bool per_example = false, inverse = false;
};

inline const StackCase kStackCases[] = {
    {"planar, a thread a row", true, 300, 2, 20},
    {"planar, lanes", true, 40, 21, 3},
    {"planar, a block a row", true, 300, 260, 1},
    {"planar, table", true, 2, 300, 21},
    {"planar, own parameters", true, 5, 12, 3, true},
    {"planar, inverse", true, 40, 5, 4, false, true},
    {"planar, own parameters, inverse", true, 3, 3, 3, true, true},
    {"radial, a thread a row", false, 300, 2, 20},
    {"radial, lanes", false, 40, 21, 3},
    {"radial, a block a row", false, 3, 300, 3},
    {"radial, own parameters", false, 5, 12, 3, true},
    {"radial, inverse", false, 40, 5, 4, false, true},
};

class StackCall {
 public:
  using Numbers = std::vector<double>;

  explicit StackCall(const StackCase& c) : c_(c) {
    const int64_t sets = c.per_example ? c.rows : 1, layers = sets * c.depth;
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const auto fill = [&](Numbers& values, int64_t count, double scale) {
      for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(scale * normal(random)));
    };
    const double scale = 1 / std::sqrt(static_cast<double>(c.features));
    fill(x_, c.rows * c.features, 1);
    fill(parameters_[0], layers * c.features, c.planar ? scale : 1);
    fill(parameters_[1], layers * (c.planar ? c.features : 1), scale);
    fill(parameters_[2], layers, 1);
    for (double& alpha : parameters_[1])
      if (!c.planar) alpha = static_cast<float>(std::abs(alpha) + 0.5);
    fill(grad_y_, x_.size(), 1);
    fill(grad_log_det_, c.rows, 1);
  }

  bool right() { return c_.planar ? run<PlanarOptions>() : run<RadialOptions>(); }

 private:
  using Floats = std::vector<float>;

  static Floats floats(const Numbers& values) { return {values.begin(), values.end()}; }
  static Floats poisoned(size_t count) {
    Floats values(count);
    std::memset(values.data(), 0xff, count * sizeof(float));
    return values;
  }
  static bool close(double got, double expected) { return std::abs(got - expected) <= 2e-3 * (1 + std::abs(expected)); }

  StackPlan plan() const {
    StackPlan p{};
    p.x_dtype = Dtype::float32;
    p.rows = c_.rows;
    p.features = c_.features;
    p.depth = c_.depth;
    p.per_example = c_.per_example;
    p.inverse = c_.inverse;
    for (int i = 0; i < kStackParameters; ++i)
      p.parameter_strides[i] = c_.per_example ? parameters_[i].size() / c_.rows : 0;
    return p;
  }

  template <class Options>
  bool run() {
    using Launchers = cuda::StackLaunchers<Options>;
    const Floats x = floats(x_), first = floats(parameters_[0]), second = floats(parameters_[1]);
    const Floats third = floats(parameters_[2]), grad_y = floats(grad_y_), grad_log_det = floats(grad_log_det_);
    Floats y = poisoned(x.size()), log_det = poisoned(c_.rows), grad_x = poisoned(x.size());
    Floats grads[] = {poisoned(first.size()), poisoned(second.size()), poisoned(third.size())};
    const StackForwardPlan<Options> f{plan(), {}, {c_.features, 1}};
    Floats workspace = poisoned(Launchers::forward_workspace(f) / sizeof(float));
    Launchers::forward(f, {x.data(), {first.data(), second.data(), third.data()}, y.data(), log_det.data()},
                       workspace.data(), 0, nullptr);
    const StackBackwardPlan<Options> b{plan(), {}, {c_.features, 1}, {c_.features, 1}, 1, true};
    workspace = poisoned(Launchers::backward_workspace(b) / sizeof(float));
    Launchers::backward(b,
                        {grad_y.data(),
                         grad_log_det.data(),
                         c_.inverse ? y.data() : x.data(),
                         {first.data(), second.data(), third.data()},
                         grad_x.data(),
                         {grads[0].data(), grads[1].data(), grads[2].data()}},
                        workspace.data(), 0, nullptr);
    return values_are(y, log_det) && gradients_are(x_, grad_x) && gradients_are(parameters_[0], grads[0]) &&
           gradients_are(parameters_[1], grads[1]) && gradients_are(parameters_[2], grads[2]);
  }

  bool values_are(const Floats& y, const Floats& log_det) const {
    bool right = true;
    for (int64_t row = 0; row < c_.rows; ++row) {
      Numbers z;
      right = right && close(log_det[row], evaluate(row, z));
      for (int64_t d = 0; d < c_.features; ++d) right = right && close(y[row * c_.features + d], z[d]);
    }
    return right;
  }

  // A few elements, from the first to the last.
  bool gradients_are(Numbers& values, const Floats& grads) const {
    bool right = true;
    const size_t step = 1 + values.size() / 7;
    for (size_t i = 0; i < values.size(); i += step) {
      for (const size_t at : {i, values.size() - 1 - i}) {
        const double before = values[at], apart = 1e-5;
        values[at] = before + apart;
        const double above = loss();
        values[at] = before - apart;
        const double slope = (above - loss()) / (2 * apart);
        values[at] = before;
        right = right && close(grads[at], slope);
      }
    }
    return right;
  }

  double loss() const {
    double sum = 0;
    for (int64_t row = 0; row < c_.rows; ++row) {
      Numbers z;
      sum += grad_log_det_[row] * evaluate(row, z);
      for (int64_t d = 0; d < c_.features; ++d) sum += grad_y_[row * c_.features + d] * z[d];
    }
    return sum;
  }

  // Returns log_det.
  double evaluate(int64_t row, Numbers& z) const {
    z.assign(x_.begin() + row * c_.features, x_.begin() + (row + 1) * c_.features);
    double log_det = 0;
    for (int64_t i = 0; i < c_.depth; ++i) {
      const int64_t k = (c_.per_example ? row * c_.depth : 0) + (c_.inverse ? c_.depth - 1 - i : i);
      log_det += c_.planar ? planar_layer(k, z) : radial_layer(k, z);
    }
    return c_.inverse ? -log_det : log_det;
  }

  double planar_layer(int64_t k, Numbers& z) const {
    const double *const u = &parameters_[0][k * c_.features], *const w = &parameters_[1][k * c_.features];
    double s = 0, square = 0, c = parameters_[2][k];
    for (int64_t d = 0; d < c_.features; ++d) s += u[d] * w[d], square += w[d] * w[d], c += w[d] * z[d];
    const double p = std::log1p(std::exp(s));
    const double a = c_.inverse ? root(c, [&](double at) { return at + (p - 1) * std::tanh(at); }) : c;
    const double h = std::tanh(a);
    for (int64_t d = 0; d < c_.features; ++d) z[d] += (c_.inverse ? -h : h) * (u[d] + (p - 1 - s) / square * w[d]);
    return std::log(1 + (p - 1) * (1 - h * h));
  }

  double radial_layer(int64_t k, Numbers& z) const {
    const double *const center = &parameters_[0][k * c_.features], alpha = parameters_[1][k];
    const double p = std::log1p(std::exp(parameters_[2][k]));
    double square = 0;
    for (int64_t d = 0; d < c_.features; ++d) square += (z[d] - center[d]) * (z[d] - center[d]);
    const double length = std::sqrt(square);
    const double r = c_.inverse ? root(length, [&](double at) { return at * (at + p) / (alpha + at); }) : length;
    const double m = (r + p) / (alpha + r), q = m + r * (alpha - p) / ((alpha + r) * (alpha + r));
    for (int64_t d = 0; d < c_.features; ++d) z[d] = center[d] + (z[d] - center[d]) * (c_.inverse ? 1 / m : m);
    return (c_.features - 1) * std::log(m) + std::log(q);
  }

  // Of f(a) = c, where f rises, by halving.
  template <class F>
  static double root(double c, F&& f) {
    double low = -100, high = 100;
    if (f(0) <= c) low = 0;
    for (int i = 0; i < 100; ++i) {
      const double middle = (low + high) / 2;
      (f(middle) < c ? low : high) = middle;
    }
    return low;
  }

  const StackCase& c_;
  Numbers x_, parameters_[kStackParameters], grad_y_, grad_log_det_;
};

}  // namespace flowkernels
