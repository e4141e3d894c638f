// Calls of dequantization and split for the driver: values and gradients against the formulas written out once more, in
// double precision.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/elementwise.h"

namespace flowkernels {

struct ElementwiseCase {
  const char* name;
  int64_t rows, features;
  int64_t apart = 1;  // neighbours of a row of bytes, or of means
  bool prior = true;
};

inline const ElementwiseCase kElementwiseCases[] = {
    {"elements, a thread a row", 300, 2}, {"elements, lanes", 37, 24},
    {"elements, ragged lanes", 37, 29},   {"elements, a warp a row", 5, 500},
    {"elements, a block a row", 3, 1003}, {"elements, chunks", 2, 17000},
    {"elements, apart", 7, 32, 3},        {"elements, no prior", 9, 40, 1, false},
};

class ElementwiseTrial {
 public:
  explicit ElementwiseTrial(const ElementwiseCase& c)
      : c_(c), count_(c.rows * c.features), x_(count_ * c.apart), mean_(count_ * c.apart) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0.01f, 0.99f);
    for (int64_t i = 0; i < count_; ++i) {
      x_[i * c.apart] = static_cast<uint8_t>(random() % kLevels);
      mean_[i * c.apart] = normal(random);
      noise_.push_back(uniform(random));
      value_.push_back(normal(random));
      log_std_.push_back(0.5f * normal(random));
      grad_.push_back(normal(random));
    }
    for (int64_t row = 0; row < c.rows; ++row) row_grad_.push_back(normal(random));
  }

  bool right() { return dequantizes() && scores(); }

 private:
  using Floats = std::vector<float>;
  using Launchers = cuda::ElementwiseLaunchers;
  static constexpr int64_t kLevels = 200;
  static constexpr double kAlpha = 0.05;

  static Floats poisoned(size_t count) {
    Floats values(count);
    std::memset(values.data(), 0xff, count * sizeof(float));
    return values;
  }
  static bool close(double got, double expected) { return std::abs(got - expected) <= 2e-4 * (1 + std::abs(expected)); }

  Operand operand(Dtype dtype, int64_t apart = 1) const { return {dtype, {0, {c_.features * apart, 0, 0, apart}}}; }

  template <class Options>
  ElementwisePlan<Options> plan(const Options& options) const {
    ElementwisePlan<Options> p{{{c_.rows, 1, 1, c_.features}}, {}, {}, 1, options};
    for (int i = 0; i < kOperands; ++i) p.input[i] = p.output[i] = operand(Dtype::float32);
    return p;
  }

  template <class Launcher, class Options>
  static void launch(const ElementwisePlan<Options>& p, const ElementwiseCall& call) {
    Floats workspace = poisoned(Launcher::workspace(p) / sizeof(float));
    Launcher::launch(p, call, workspace.data(), 0, nullptr);
  }

  bool dequantizes() {
    Floats z = poisoned(count_), log_det = poisoned(c_.rows), grad_noise = poisoned(count_);
    auto p = plan(DequantizeOptions{kLevels, kAlpha});
    p.input[1] = operand(Dtype::uint8, c_.apart);
    launch<Launchers::DequantizeForward>(
        p, {{noise_.data(), x_.data(), nullptr}, nullptr, {z.data(), nullptr, nullptr}, log_det.data()});
    p.input[1] = operand(Dtype::float32);
    launch<Launchers::DequantizeBackward>(
        p, {{z.data(), grad_.data(), nullptr}, row_grad_.data(), {grad_noise.data(), nullptr, nullptr}, nullptr});
    p.output[0] = operand(Dtype::uint8);
    std::vector<uint8_t> whole(count_, 255);
    launch<Launchers::Quantize>(p, {{z.data(), nullptr, nullptr}, nullptr, {whole.data(), nullptr, nullptr}, nullptr});
    bool right = true;
    for (int64_t row = 0, i = 0; row < c_.rows; ++row) {
      double sum = 0;
      for (const int64_t end = i + c_.features; i < end; ++i) {
        const double share = (1 - kAlpha) / kLevels, q = (x_[i * c_.apart] + noise_[i]) * share + kAlpha / 2;
        const double slope = share / (q * (1 - q));
        sum += std::log(slope);
        right = right && close(z[i], std::log(q / (1 - q))) && whole[i] == x_[i * c_.apart] &&
                close(grad_noise[i], (grad_[i] + row_grad_[row] * (2 * q - 1)) * slope);
      }
      right = right && close(log_det[row], sum);
    }
    return right;
  }

  bool scores() {
    Floats log_prob = poisoned(c_.rows), of_value = poisoned(count_), of_mean = of_value, of_log_std = of_value;
    auto p = plan(SplitOptions{});
    p.input[1] = operand(Dtype::float32, c_.apart);
    const float *const mean = c_.prior ? mean_.data() : nullptr, *const log_std = c_.prior ? log_std_.data() : nullptr;
    launch<Launchers::SplitForward>(p, {{value_.data(), mean, log_std}, nullptr, {}, log_prob.data()});
    launch<Launchers::SplitBackward>(p, {{value_.data(), mean, log_std},
                                         row_grad_.data(),
                                         {of_value.data(), of_mean.data(), of_log_std.data()},
                                         nullptr});
    bool right = true;
    for (int64_t row = 0, i = 0; row < c_.rows; ++row) {
      double sum = 0;
      for (const int64_t end = i + c_.features; i < end; ++i) {
        const double std = mean ? std::exp(log_std_[i]) : 1, v = (value_[i] - (mean ? mean_[i * c_.apart] : 0)) / std;
        sum -= v * v / 2 + std::log(std) + std::log(2 * std::acos(-1)) / 2;
        right = right && close(of_value[i], -row_grad_[row] * v / std) && close(of_mean[i], row_grad_[row] * v / std) &&
                close(of_log_std[i], row_grad_[row] * (v * v - 1));
      }
      right = right && close(log_prob[row], sum);
    }
    return right;
  }

  const ElementwiseCase& c_;
  int64_t count_;
  std::vector<uint8_t> x_;
  Floats mean_, noise_, value_, log_std_, grad_, row_grad_;
};

}  // namespace flowkernels
