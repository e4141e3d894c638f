// Perceptrons on the CPU. A tile of rows lies unit by unit, its rows side by side in vectors, and goes through all
// layers before the next tile is touched. One product of matrices does everything: the numbers of its left side are
// broadcast, those of its right side and of its result are vectors.
#include "cpu/perceptron.h"

#include "cpu/memory.h"
#include "cpu/sums.h"

namespace flowkernels::cpu::FLOWKERNELS_ISA {
namespace {

constexpr int kRows = kPerceptronRows;
constexpr int64_t kThreadedProducts = 1 << 18;  // below this, waking threads costs more than it saves
constexpr int64_t kParts = 16;                  // into which rows are divided for sums over them

constexpr int kLanes = kVectorBytes / sizeof(float);
constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;
constexpr int kHeight = 4;  // with kVectors, the block of a product that is held in registers

typedef float Vector __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

inline Vector vector_at(const float* address) { return *reinterpret_cast<const Vector*>(address); }

inline void set_vector(float* address, Vector value) { *reinterpret_cast<Vector*>(address) = value; }

inline int64_t padded(int64_t count) { return ceil_divide(count, kLanes) * kLanes; }

// Zeroed, and aligned to lines of the cache.
struct Floats {
  Zeros memory;
  float* values;

  explicit Floats(int64_t count) : memory(count / 2 + 9) {
    constexpr uintptr_t line = 64;
    values = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.values) + line - 1) / line * line);
  }
};

// c = a b, whose a is rows x depth and may have any strides; columns are a multiple of kLanes.
struct Product {
  int64_t rows, columns, depth;
  Matrix a;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
};

// What the sums of a product start from, and what is made of them; `at` is their place in c.
struct Activated {
  const float* bias;
  float slope;

  Vector start(int64_t row, int64_t) const { return Vector{} + bias[row]; }
  Vector finish(Vector sum, int64_t) const {
    if (slope == 0) return sum < Vector{} ? Vector{} : sum;  // a product would make NaN of infinity
    return sum > Vector{} ? sum : sum * slope;
  }
};

// Adds to the running sum of a residual network, whose activation is the result.
struct RunningSum {
  Activated layer;
  float* total;

  Vector start(int64_t row, int64_t at) const { return layer.start(row, at) + vector_at(total + at); }
  Vector finish(Vector sum, int64_t at) const {
    set_vector(total + at, sum);
    return layer.finish(sum, at);
  }
};

// The gradient of a layer's input, through the activation that it came from; there is none where the slope is 1.
struct Deactivated {
  const float* input;
  float slope;

  Vector start(int64_t, int64_t) const { return Vector{}; }
  Vector finish(Vector sum, int64_t at) const {
    if (slope == 1) return sum;
    const Vector unit = vector_at(input + at);
    if (slope == 0) return unit <= Vector{} ? Vector{} : sum;
    return unit > Vector{} ? sum : sum * slope;
  }
};

// Adds that of a block's input to the gradient of its output, which goes past the block too.
struct PastBlock {
  Deactivated input;
  const float* grad;

  Vector start(int64_t row, int64_t at) const { return input.start(row, at); }
  Vector finish(Vector sum, int64_t at) const { return input.finish(sum, at) + vector_at(grad + at); }
};

struct Added {
  const float* c;

  Vector start(int64_t, int64_t at) const { return vector_at(c + at); }
  Vector finish(Vector sum, int64_t) const { return sum; }
};

template <int rows, int vectors, class Ends>
inline void multiply_block(const Product& p, int64_t row, int64_t column, const Ends& ends) {
  const int64_t at = row * p.c_stride + column, row_stride = p.a.row_stride, column_stride = p.a.column_stride;
  const float *a = p.a.values + row * row_stride, *b = p.b + column;
  Vector sum[rows][vectors];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[i][v] = ends.start(row + i, at + i * p.c_stride + v * kLanes);
  }
  for (int64_t k = 0; k < p.depth; ++k, a += column_stride, b += p.b_stride) {
    Vector right[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) right[v] = vector_at(b + v * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const Vector left = Vector{} + a[i * row_stride];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[i][v] += left * right[v];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const int64_t place = at + i * p.c_stride + v * kLanes;
      set_vector(p.c + place, ends.finish(sum[i][v], place));
    }
  }
}

template <int rows, class Ends>
inline void multiply_rows(const Product& p, int64_t row, const Ends& ends) {
  int64_t column = 0;
  for (; column + kVectors * kLanes <= p.columns; column += kVectors * kLanes)
    multiply_block<rows, kVectors>(p, row, column, ends);
  for (; column < p.columns; column += kLanes) multiply_block<rows, 1>(p, row, column, ends);
}

template <class Ends>
void multiply(const Product& p, const Ends& ends) {
  int64_t row = 0;
  for (; row + kHeight <= p.rows; row += kHeight) multiply_rows<kHeight>(p, row, ends);
  for (; row < p.rows; ++row) multiply_rows<1>(p, row, ends);
}

// Rows of a matrix, unit by unit; zeros where it has ended.
void load_units(const Matrix& from, int64_t first, int64_t count, int64_t units, float* tile) {
  const float* start = from.values + first * from.row_stride;
  if (from.column_stride == 1) {
    transpose(start, from.row_stride, tile, kRows, count, units);
  } else {
    for (int64_t u = 0; u < units; ++u) {
      for (int64_t r = 0; r < count; ++r) tile[u * kRows + r] = start[r * from.row_stride + u * from.column_stride];
    }
  }
  for (int64_t u = 0; count < kRows && u < units; ++u) fill(tile + u * kRows + count, 0.0f, kRows - count);
}

int64_t hidden_units(const Perceptron& net) {
  int64_t total = 0;
  for (int l = 1; l < net.layers; ++l) total += net.sizes[l];
  return total;
}

// Of the activation behind a layer; 1 where there is none.
float slope_behind(const Perceptron& net, int layer) {
  const int hidden = net.layers - (net.residual ? 2 : 1);
  return layer >= 0 && layer < hidden ? net.slope : 1;
}

// In a residual network, layers whose output is the running sum alternate with those inside of blocks and the last.
bool adds_up(const Perceptron& net, int layer) { return net.residual && layer % 2 == 0; }

struct ForwardTile {
  const Perceptron& net;
  const PerceptronForwardCall& call;
  Floats input, output, hidden, total;

  ForwardTile(const Perceptron& net, const PerceptronForwardCall& call)
      : net(net),
        call(call),
        input(net.sizes[0] * kRows),
        output(net.sizes[net.layers] * kRows),
        hidden(call.hidden == nullptr ? hidden_units(net) * kRows : 0),
        total(net.residual ? net.sizes[1] * kRows : 0) {}

  void run(int64_t tile) {
    const int64_t first = tile * kRows, count = smaller(kRows, call.rows - first), outputs = net.sizes[net.layers];
    float* next = call.hidden == nullptr ? hidden.values : call.hidden + first * hidden_units(net);
    const float* from = input.values;
    load_units(call.x, first, count, net.sizes[0], input.values);
    if (net.residual) fill(total.values, 0.0f, net.sizes[1] * kRows);
    for (int l = 0; l < net.layers; ++l) {
      const int64_t inputs = net.sizes[l], units = net.sizes[l + 1];
      float* to = l + 1 == net.layers ? output.values : next;
      const Product product{units, kRows, inputs, {call.parameters[2 * l], inputs, 1}, from, kRows, to, kRows};
      const Activated layer{call.parameters[2 * l + 1], slope_behind(net, l)};
      if (adds_up(net, l)) {
        multiply(product, RunningSum{layer, total.values});
      } else {
        multiply(product, layer);
      }
      from = to;
      next += units * kRows;
    }
    transpose(output.values, kRows, call.y + first * outputs, outputs, outputs, count);
  }
};

// The sums over rows that make the gradients of one layer: those of its weight as they are or transposed, whichever way
// wastes less of the vectors, and kLanes for each of its biases.
struct LayerSums {
  int64_t inputs, units;
  bool transposed;

  LayerSums(const Perceptron& net, int l)
      : inputs(net.sizes[l]), units(net.sizes[l + 1]), transposed(inputs * padded(units) < units * padded(inputs)) {}

  int64_t of_weight() const { return transposed ? inputs * padded(units) : units * padded(inputs); }
  int64_t count() const { return of_weight() + units * kLanes; }

  // Adds those of a tile, from the layer's input and the gradient of its output.
  void add(const float* from, const float* grad, int64_t rows, float* scratch, float* sums) const {
    const float *left = transposed ? from : grad, *right = transposed ? grad : from;
    const int64_t height = transposed ? inputs : units, width = transposed ? units : inputs, step = padded(width);
    transpose(right, kRows, scratch, step, width, rows);
    multiply(Product{height, step, rows, {left, kRows, 1}, scratch, step, sums, step}, Added{sums});
    float* biases = sums + of_weight();
    for (int64_t u = 0; u < units; ++u) {
      Vector sum = vector_at(biases + u * kLanes);
      for (int r = 0; r < kRows; r += kLanes) sum += vector_at(grad + u * kRows + r);
      set_vector(biases + u * kLanes, sum);
    }
  }

  // The gradients from the sums of a layer over all rows.
  void finish(const float* sums, float* weight, float* bias) const {
    const int64_t unit_step = transposed ? 1 : padded(inputs), input_step = transposed ? padded(units) : 1;
    for (int64_t u = 0; weight != nullptr && u < units; ++u) {
      for (int64_t i = 0; i < inputs; ++i) weight[u * inputs + i] = sums[u * unit_step + i * input_step];
    }
    const float* biases = sums + of_weight();
    for (int64_t u = 0; bias != nullptr && u < units; ++u) bias[u] = fold<kLanes>(biases + u * kLanes);
  }
};

int64_t most_units(const Perceptron& net) {
  int64_t most = 0;
  for (int l = 0; l <= net.layers; ++l) most = most < net.sizes[l] ? net.sizes[l] : most;
  return most;
}

struct BackwardTile {
  const Perceptron& net;
  const PerceptronBackwardCall& call;
  Floats input, one, other, scratch;

  BackwardTile(const Perceptron& net, const PerceptronBackwardCall& call)
      : net(net),
        call(call),
        input(net.sizes[0] * kRows),
        one(most_units(net) * kRows),
        other(most_units(net) * kRows),
        scratch(padded(most_units(net)) * kRows) {}

  void run(int64_t tile, float* sums) {
    const int64_t first = tile * kRows, count = smaller(kRows, call.rows - first);
    const float* hidden =
        call.hidden + (first + kRows) * hidden_units(net);  // behind the last layer's input, if it is hidden
    float *grad = one.values, *next = other.values;
    load_units(call.x, first, count, net.sizes[0], input.values);
    load_units(call.grad_y, first, count, net.sizes[net.layers], grad);
    for (int l = net.layers - 1; l >= 0; --l) {
      const int64_t inputs = net.sizes[l], units = net.sizes[l + 1];
      const LayerSums layer(net, l);
      if (l > 0) hidden -= inputs * kRows;
      sums -= layer.count();
      if (call.grad_parameters[2 * l] != nullptr || call.grad_parameters[2 * l + 1] != nullptr)
        layer.add(l > 0 ? hidden : input.values, grad, count, scratch.values, sums);
      if (l == 0 && call.grad_x == nullptr) return;
      const Product product{inputs, kRows, units, {call.parameters[2 * l], 1, inputs}, grad, kRows, next, kRows};
      const Deactivated input{hidden, slope_behind(net, l - 1)};
      if (adds_up(net, l - 1) && l + 1 < net.layers) {
        multiply(product, PastBlock{input, next});  // where the gradient of the block's output is still
      } else {
        multiply(product, input);
      }
      float* done = grad;
      grad = next;
      next = done;
    }
    transpose(grad, kRows, call.grad_x + first * net.sizes[0], net.sizes[0], net.sizes[0], count);
  }
};

bool threaded(const Perceptron& net, int64_t rows) {
  int64_t products = 0;
  for (int l = 0; l < net.layers; ++l) products += net.sizes[l] * net.sizes[l + 1];
  return rows > kRows && rows * products >= kThreadedProducts;
}

int64_t sums_of(const Perceptron& net) {
  int64_t count = 0;
  for (int l = 0; l < net.layers; ++l) count += LayerSums(net, l).count();
  return count;
}

}  // namespace

void perceptron_forward(const Perceptron& net, const PerceptronForwardCall& call) {
  const int64_t tiles = ceil_divide(call.rows, kRows);
#pragma omp parallel if (threaded(net, call.rows))
  {
    ForwardTile forward(net, call);
#pragma omp for schedule(static) nowait
    for (int64_t tile = 0; tile < tiles; ++tile) forward.run(tile);
  }
}

// The sums over rows are those of parts, which do not depend on the number of threads, added in order.
void perceptron_backward(const Perceptron& net, const PerceptronBackwardCall& call) {
  const int64_t tiles = ceil_divide(call.rows, kRows), parts = smaller(ceil_divide(tiles, 2), kParts);
  const int64_t sums = padded(sums_of(net));
  const Floats partial(parts * sums);
#pragma omp parallel if (threaded(net, call.rows))
  {
    BackwardTile backward(net, call);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; ++part) {
      float* end = partial.values + part * sums + sums_of(net);
      for (int64_t tile = part * tiles / parts; tile < (part + 1) * tiles / parts; ++tile) backward.run(tile, end);
    }
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < sums; i += kLanes) {
      Vector total = vector_at(partial.values + i);
      for (int64_t part = 1; part < parts; ++part) total += vector_at(partial.values + part * sums + i);
      set_vector(partial.values + i, total);
    }
  }
  const float* of_layer = partial.values;
  for (int l = 0; l < net.layers; ++l) {
    const LayerSums layer(net, l);
    layer.finish(of_layer, call.grad_parameters[2 * l], call.grad_parameters[2 * l + 1]);
    of_layer += layer.count();
  }
}

}  // namespace flowkernels::cpu::FLOWKERNELS_ISA
