// Whole products and whole mixtures of experts: who computes what, in which order. The arithmetic is a Target's.
#include <algorithm>
#include <vector>

#include "inputs.h"
#include "threads.h"

namespace baltoro {

namespace {

// What threads take at once of `panels` panels, `times` over: an even number, so that panels go in pairs; long, since
// at the beginning of each the memory is waited for; but short enough for each thread to have some.
struct Stripes {
  int64_t panels, length, count;

  Stripes(int64_t panels, int64_t times, int threads) : panels(panels) {
    length = std::clamp<int64_t>(panels * times / (8 * threads) / 2 * 2, 4, 32);
    count = (panels + length - 1) / length;
  }
  int64_t begin(int64_t stripe) const { return stripe * length; }
  int64_t end(int64_t stripe) const { return std::min(panels, (stripe + 1) * length); }
};

}  // namespace

void matmul(const Target& target, const Matrix& w, const float* x, float* y, int64_t T, int threads) {
  thread_local Room room;
  thread_local std::vector<Token> tokens;
  const Inputs inputs = room.inputs_of(w, T, together(target, w, T));
  auto same = [](int64_t t) { return t; };
  prepare_rows(target, w, x, inputs, T, same, same, threads);
  tokens.clear();
  for (int64_t t = 0; t < T; ++t) tokens.push_back({static_cast<int32_t>(t), static_cast<int32_t>(t), 1.0f});
  const Token* all = tokens.data();
  const Stripes stripes(panels(w), 1, threads);
  auto work = [&, all](int64_t stripe) {
    target.product(w, inputs, all, T, stripes.begin(stripe), stripes.end(stripe), nullptr, y, w.outputs);
  };
  parallel_for(threads, stripes.count, work);
}

void matmul_each(const Target& target, const Matrix& w, const float* x, float* y, int64_t T, int64_t H, int threads) {
  thread_local Room room;
  thread_local std::vector<Token> tokens;
  const int rows = together(target, w, T);
  const int64_t slots = rounded_up(T, rows);  // of a head
  const Inputs inputs = room.inputs_of(w, H * slots, rows);
  auto from = [=](int64_t i) { return i % T * H + i / T; };
  auto to = [=](int64_t i) { return i / T * slots + i % T; };
  prepare_rows(target, w, x, inputs, H * T, from, to, threads);
  tokens.clear();
  for (int64_t i = 0; i < H * T; ++i)
    tokens.push_back({static_cast<int32_t>(to(i)), static_cast<int32_t>(from(i)), 1.0f});
  const Token* all = tokens.data();
  auto work = [&, all](int64_t h) {
    target.product(of_expert(w, h), inputs, all + h * T, T, 0, panels(w), nullptr, y, w.outputs);
  };
  parallel_for(threads, H, work);
}

void experts(const Target& target, const Matrix& gate, const Matrix& up, const Matrix& down, const float* x,
             const int64_t* experts, const float* weights, float* y, int64_t T, int64_t K, int64_t E, int threads,
             const Places& places) {
  thread_local Room room, sorted_room, hidden_room;
  thread_local std::vector<float> hidden;  // (slots, F): pairs of token and choice sorted by expert
  thread_local std::vector<Token> to_hidden, to_output;
  thread_local std::vector<int64_t> begins, slots,
      busy;  // (E + 1,) pairs and slots before each; the experts that have some

  const int64_t width = gate.outputs, D = down.outputs;
  auto place = [&places](int64_t e) { return places.of ? places.of[e] : e; };
  begins.assign(E + 1, 0);
  for (int64_t i = 0; i < T * K; ++i)
    if (place(experts[i]) >= 0) ++begins[experts[i] + 1];
  const int64_t most = *std::max_element(begins.begin(), begins.end());
  const int rows = together(target, gate, most), hidden_rows = together(target, down, most);
  const int64_t multiple = std::max(rows, hidden_rows);  // of each expert's slots: one is 1 or they are the same
  busy.clear(), slots.assign(E + 1, 0);
  for (int64_t e = 0; e < E; ++e) {
    if (begins[e + 1] > 0) busy.push_back(e);
    slots[e + 1] = slots[e] + rounded_up(begins[e + 1], multiple);
    begins[e + 1] += begins[e];
  }
  const int64_t pairs = begins[E];
  to_hidden.resize(pairs), to_output.resize(pairs);
  for (int64_t i = 0; i < T * K; ++i) {
    if (place(experts[i]) < 0) continue;
    const int64_t e = experts[i], pair = begins[e]++;
    const int32_t slot = static_cast<int32_t>(slots[e]++), token = static_cast<int32_t>(i / K);
    to_hidden[pair] = {most > 1 ? slot : token, slot, 1.0f};
    to_output[pair] = {slot, token, weights[i]};
  }
  for (int64_t e = E; e > 0; --e) begins[e] = begins[e - 1];  // each had moved to its end
  begins[0] = 0;

  const int64_t num_slots = slots[E];
  hidden.resize(std::max<size_t>(hidden.size(), num_slots * width));
  const Inputs prepared = room.inputs_of(gate, T), hidden_inputs = hidden_room.inputs_of(down, num_slots, hidden_rows);
  const Inputs inputs = most > 1 ? sorted_room.inputs_of(gate, num_slots, rows) : prepared;
  const Token *first = to_hidden.data(), *second = to_output.data();
  const int64_t *begin = begins.data(), *who = busy.data(), num_busy = static_cast<int64_t>(busy.size());
  float* h = hidden.data();

  auto same = [](int64_t t) { return t; };
  prepare_rows(target, gate, x, prepared, T, same, same, threads);
  if (most > 1) {  // an expert's rows are to lie one behind the other
    auto copy = [&, second](int64_t i) { baltoro::place(prepared, second[i].out, inputs, second[i].row); };
    parallel_for(pairs * prepared.row_bytes < 65536 ? 1 : threads, pairs, copy);
  }
  const Stripes narrow(panels(gate), num_busy, threads);
  auto enter = [&, first, begin, who, h](int64_t index) {
    const int64_t e = who[index / narrow.count], stripe = index % narrow.count;
    target.gated(of_expert(gate, place(e)), of_expert(up, place(e)), inputs, first + begin[e], begin[e + 1] - begin[e],
                 narrow.begin(stripe), narrow.end(stripe), h, width);
  };
  parallel_for(threads, num_busy * narrow.count, enter);

  auto slot = [second](int64_t i) { return second[i].row; };
  prepare_rows(target, down, h, hidden_inputs, pairs, slot, slot, threads);
  const Stripes wide(panels(down), 1, threads);
  auto leave = [&, second, begin, who](int64_t stripe) {
    const int64_t p = wide.begin(stripe), end = wide.end(stripe);
    for (int64_t t = 0; t < T && !places.onto; ++t)
      std::fill(y + t * D + p * kPanel, y + t * D + std::min(end * kPanel, D), 0.0f);
    for (int64_t b = 0; b < num_busy; ++b) {
      const int64_t e = who[b];
      const uint8_t* next =
          b + 1 < num_busy ? of_expert(down, place(who[b + 1])).data + p * panel_bytes(down) : nullptr;
      target.weighted(of_expert(down, place(e)), hidden_inputs, second + begin[e], begin[e + 1] - begin[e], p, end,
                      next, y, D);
    }
  };
  parallel_for(threads, wide.count, leave);
}

}  // namespace baltoro
