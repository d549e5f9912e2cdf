// What Python may call: the contract. No instruction set and no Python in here.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace baltoro {

constexpr int kPanel = 16;  // outputs whose weights lie together: one register of 32-bit lanes

// How a matrix's weights are kept. Numbers are part of the door to Python.
enum class Format : int32_t { kBf16 = 0, kFp8 = 1, kInt8 = 2, kInt4 = 3 };

// A matrix (O, I) as kernels read it: panels of 16 outputs one behind the other, rows beyond O filled with zeros. A
// panel is a row of 64-byte chunks, each with the same few inputs of all 16 outputs:
//
//   bf16  2 inputs   [output][input]
//   fp8   4 inputs   [output / 4][input / 2][output % 4][input % 2]   as two byte shuffles make bf16 pairs of it
//   int8  4 inputs   [output][input], value + 128
//   int4  8 inputs   [output][input % 4], value + 8: inputs 0-3 in the low halves of the bytes, 4-7 in the high ones
//
// Scales of int8 and int4: [panel][I / group][output] bf16, group a multiple of 8 that divides I. Of fp8:
// [panel][ceil(I / 128)] float32. bf16 has none. Inputs beyond I, up to a whole chunk, are zeros.
struct Matrix {
  Format format;
  int64_t outputs, inputs, group;
  const uint8_t* data;
  const uint8_t* scales;
  int64_t next = 0;  // bytes from one matrix of a stack to the next, and between their scales; 0: they follow closely
};

// `static`: a shared copy could be the one that was compiled for a wider instruction set.
static inline bool is_integer(const Matrix& w) { return w.format == Format::kInt8 || w.format == Format::kInt4; }
static inline int64_t panels(const Matrix& w) { return (w.outputs + kPanel - 1) / kPanel; }
static inline int64_t groups(const Matrix& w) {
  return w.format == Format::kBf16 ? 0 : (w.inputs + w.group - 1) / w.group;
}
static inline int64_t panel_bytes(const Matrix& w) {  // bf16 in whole steps of 4 inputs, as the others
  const int64_t inputs = w.format == Format::kInt4 ? 8 : 4, bytes = w.format == Format::kBf16 ? 128 : 64;
  return (w.inputs + inputs - 1) / inputs * bytes;
}
static inline int64_t panel_scale_bytes(const Matrix& w) { return groups(w) * (is_integer(w) ? 2 * kPanel : 4); }

// What a matrix is packed from: its rows one behind the other, as checkpoints have them.
struct Numbers {
  enum Type : int32_t { kFloat32 = 0, kBf16 = 1, kBlockFp8 = 2 };
  Type type;
  const uint8_t* data;
  const float* scales;  // of e4m3 numbers: (ceil(O / 128), ceil(I / 128)), what they are multiplied with
};

// Inputs that are packed together: whole groups, and about 128 of them. What one thread needs for that, in floats.
static inline int64_t packing_span(const Matrix& w) { return is_integer(w) ? (127 / w.group + 1) * w.group : 128; }
static inline int64_t packing_room(const Matrix& w) { return (packing_span(w) + 64) * kPanel + (w.inputs + 127) / 128; }

// Rows of activations, ready to be multiplied: bf16 for bf16 and fp8; for int8 and int4 signed bytes with a scale for
// each row and group, -127 .. 127.
struct Inputs {
  uint8_t* values;  // [row / together][row_bytes / 64][row % together][64], or plain rows with `together` 1
  float* scales;    // (rows, groups)
  int32_t* starts;  // (rows, groups): where a sum begins, to take back what was added to the weights
  int64_t row_bytes, groups;
  int together;
};

// One destination of a product: prepared row `row` gives row `out` of the result, times `weight` where it is added up.
// Where rows lie together, a product's tokens are consecutive rows from a multiple of `together` on.
struct Token {
  int32_t row, out;
  float weight;
};

// Keys and values of one sequence, bf16. Row s is slots[s], or s where there are no slots. A key is as wide as the
// queries; keys begin `stride` numbers apart, values `value_stride`.
struct KeyRows {
  const uint16_t *keys, *values;
  int64_t stride, value_stride;
  const int64_t* slots;
  const uint8_t* arranged = nullptr;  // the values of the rows from `arranged_from` on, where a target wants them so
  int64_t arranged_from = 0;
  int64_t ahead = 0, ahead_end = 0;  // rows that this thread wants next: they are asked for meanwhile
};

// What some queries (at most 32) have seen until now. Begins with peaks of -3e38 and zeros; mixed / sum is the result.
struct Attended {
  float* peak;    // (32,) the largest scaled score
  float* sum;     // (32,) of exp(score - peak)
  float* mixed;   // (queries, width) of exp(score - peak) * value
  int64_t width;  // of a value, a multiple of 32
};

// Rows of plain numbers, float32 or bf16, `stride` numbers apart. Row i is rows[i], or i where there are none.
struct Dense {
  const void* data;
  int64_t stride;
  const int64_t* rows;
  bool is_bf16;
};

// Every kernel, compiled for one instruction set. All sums of an output run over the inputs in one fixed order, so
// that a result has the same bits whatever was computed beside it and on however many threads; with int8 and int4
// the same bits on every target, too.
struct Target {
  const char* name;
  int tile_rows;  // tokens whose inputs should lie together, where there are so many; 1: none

  // x (I,) float32 into row `row` of `to`, whose rows are plain.
  void (*prepare)(const Matrix& w, const float* x, const Inputs& to, int64_t row);

  // y[out] = w x[row], for outputs of the panels [begin, end). y(., stride). `next`: where the panels lie that this
  // thread wants after these, or null; they are asked for in time.
  void (*product)(const Matrix& w, const Inputs& x, const Token* tokens, int64_t count, int64_t begin, int64_t end,
                  const uint8_t* next, float* y, int64_t stride);

  // y[out] = silu(gate x[row]) * up x[row]
  void (*gated)(const Matrix& gate, const Matrix& up, const Inputs& x, const Token* tokens, int64_t count,
                int64_t begin, int64_t end, float* y, int64_t stride);

  // y[out] += weight * (w x[row])
  void (*weighted)(const Matrix& w, const Inputs& x, const Token* tokens, int64_t count, int64_t begin, int64_t end,
                   const uint8_t* next, float* y, int64_t stride);

  // Rows of float32 to rows of bf16, the nearest; rows begin `stride` and `to_stride` numbers apart.
  void (*round_rows)(const float* from, int64_t stride, int64_t rows, int64_t columns, uint16_t* to, int64_t to_stride);

  // Values of the rows [begin, end), each of `width` numbers, for attend: 32 rows after 32. `to` has room for a
  // multiple of 32 rows. Null where values are taken as they lie.
  void (*arrange)(const KeyRows& rows, int64_t begin, int64_t end, int64_t width, uint8_t* to);

  // Adds keys [begin, end) to what the queries have seen: bf16, one output of the matrix a query. Query q sees keys
  // 0 .. past + q.
  void (*attend)(const Matrix& queries, const KeyRows& rows, int64_t begin, int64_t end, int64_t past, float scale,
                 Attended& state);

  // Fills the panels [begin, end) of the shape `to`, at `data` and `scales`; false where a number is none. Of fp8 that
  // is made of wider numbers `begin` is a multiple of 8 panels, and `end`, too, or the last. `room`: packing_room(to).
  bool (*pack)(const Numbers& from, const Matrix& to, uint8_t* data, uint8_t* scales, int64_t begin, int64_t end,
               float* room);

  // For measuring what is possible, see roof.inl.
  uint32_t (*read_all)(const uint8_t* from, int64_t bytes);
  // Multiplies with what a format is multiplied with, and returns how many products; the rest keeps it from being left
  // out.
  int64_t (*multiply)(Format format, int64_t rounds, const uint8_t* weights, const int8_t* x, uint32_t& used);

  // dense.inl: the same bits on every target. y[t][o] = row o of w times x[t], for o in [begin, end).
  void (*dots)(const Dense& w, int64_t begin, int64_t end, int64_t inputs, const float* x, int64_t stride,
               int64_t tokens, float* y, int64_t y_stride);

  // y(columns,) = sum of weights[i] * row i
  void (*mix_rows)(const Dense& w, int64_t count, const float* weights, int64_t columns, float* y);

  // y = weight * s / sqrt(mean(s^2) + eps) of s = x, or of s = x + added, which goes to `sum`
  void (*normalize)(const float* x, const float* added, const float* weight, float eps, float* sum, float* y,
                    int64_t width);

  void (*sigmoids)(float* x, int64_t count);                                       // in place
  void (*gate_rows)(const float* gate, const float* up, float* y, int64_t count);  // silu(gate) * up
  void (*softmax)(float* x, int64_t count, float scale);                           // in place, of scale * x
};

// Names of the targets that this CPU can run, slowest first; never empty.
std::vector<std::string> targets();

// One of targets(). Any other name throws std::invalid_argument; nothing falls back.
const Target& target(const std::string& name);

// y(T, O) = x(T, I) w^T on `threads` threads.
void matmul(const Target& target, const Matrix& w, const float* x, float* y, int64_t T, int threads);

// y(T, H, O) = x(T, H, I) times the transposed matrix of each head; `w` is the first of a stack of H.
void matmul_each(const Target& target, const Matrix& w, const float* x, float* y, int64_t T, int64_t H, int threads);

// Stacked matrices, expert e being number e of the stack, or number places[e] where there are places.
// y(T, D) = sum over k of weights(T, K) * down_e(silu(gate_e x) * up_e x), e = experts(T, K), each expert's weights
// read once for all its tokens. Terms of a token are added in the order of their experts' numbers.
//
// Experts whose place is negative are left out. `onto`: the sums are added to what y holds, so that experts may come in
// several calls, those of lower numbers before.
struct Places {
  const int64_t* of = nullptr;  // (E,)
  bool onto = false;
};
void experts(const Target& target, const Matrix& gate, const Matrix& up, const Matrix& down, const float* x,
             const int64_t* experts, const float* weights, float* y, int64_t T, int64_t K, int64_t E, int threads,
             const Places& places = {});

// Absorbed MLA, one query a sequence: context(B, H, C) = softmax(scale q(B, H, C + R) rows^T) rows[:C], over the rows
// slots[edges[b]] .. slots[edges[b + 1] - 1] of cache(., C + R). C is a multiple of 32.
void mla_decode(const Target& target, const float* q, const uint16_t* cache, const int64_t* slots, const int64_t* edges,
                float scale, float* context, int64_t B, int64_t H, int64_t C, int64_t R, int threads);

// Expanded attention of T new tokens to S = past + T keys and values of H heads: out(T, H, V), token t seeing keys
// 0 .. past + t. q(T, H, K) float32; k(S, H, K) and v(S, H, V) bf16. V is a multiple of 32.
void causal_attention(const Target& target, const float* q, const uint16_t* k, const uint16_t* v, float scale,
                      float* out, int64_t T, int64_t S, int64_t H, int64_t K, int64_t V, int threads);

// Fills a matrix of the shape `to` with numbers, rounded to the nearest that its format has (int4: see pack.inl), on
// `threads` threads. False: a number or a scale is inf or NaN, or too large for the format, and what was written is of
// no use. Numbers may lie at any address.
bool pack(const Target& target, const Numbers& from, const Matrix& to, uint8_t* data, uint8_t* scales, int threads);

// Bytes a second when `threads` threads read `bytes` bytes (a multiple of 512 times threads) once.
double read_roof(const Target& target, const uint8_t* from, int64_t bytes, int threads);

// Multiplications and additions a second (a product counts as two) of what this format is multiplied with, from
// registers.
double multiply_roof(const Target& target, Format format, int threads);

}  // namespace baltoro
