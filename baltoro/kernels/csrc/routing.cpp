// Which experts a token goes to. The arithmetic is a Target's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "around.h"
#include "threads.h"

namespace baltoro {

namespace {

constexpr int64_t kStripe = 16;  // experts whose scores a thread makes at once

bool better(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// Numbers of the `wanted` best of `values`, best first, of equals the lower.
void best(const float* values, int64_t count, int64_t wanted, int64_t* found) {
  int64_t have = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (have == wanted && !better(values[i], values[found[have - 1]])) continue;
    int64_t place = have < wanted ? have++ : have - 1;
    for (; place > 0 && better(values[i], values[found[place - 1]]); --place) found[place] = found[place - 1];
    found[place] = i;
  }
}

void forget_weak_groups(float* values, int64_t count, const Choice& choice) {
  thread_local std::vector<float> strengths;
  thread_local std::vector<int64_t> kept;
  const int64_t size = count / choice.groups;
  strengths.resize(choice.groups), kept.resize(choice.kept_groups);
  for (int64_t g = 0; g < choice.groups; ++g) {
    int64_t two[2];
    best(values + g * size, size, 2, two);
    strengths[g] = values[g * size + two[0]] + values[g * size + two[1]];
  }
  best(strengths.data(), choice.groups, choice.kept_groups, kept.data());
  for (int64_t g = 0; g < choice.groups; ++g)
    if (std::find(kept.begin(), kept.end(), g) == kept.end())
      std::fill(values + g * size, values + (g + 1) * size, -std::numeric_limits<float>::infinity());
}

}  // namespace

void route(const Target& target, const Dense& w, const float* bias, const Choice& choice, const float* x,
           float* weights, int64_t* experts, int64_t T, int64_t D, int64_t E, int threads) {
  thread_local std::vector<float> room;
  room.resize(std::max<size_t>(room.size(), T * E));
  float* const scores = room.data();  // the caller's, for all threads
  auto score = [&, scores](int64_t stripe) {
    target.dots(w, stripe * kStripe, std::min((stripe + 1) * kStripe, E), D, x, D, T, scores, E);
  };
  parallel_for(T * E * D < 65536 ? 1 : threads, T ? (E + kStripe - 1) / kStripe : 0, score);
  auto choose = [&, scores](int64_t t) {
    thread_local std::vector<float> biased;
    float *own = scores + t * E, *to = weights + t * choice.chosen;
    int64_t* found = experts + t * choice.chosen;
    target.sigmoids(own, E);
    biased.resize(E);
    for (int64_t e = 0; e < E; ++e) biased[e] = own[e] + bias[e];
    if (choice.groups > 1) forget_weak_groups(biased.data(), E, choice);
    best(biased.data(), E, choice.chosen, found);
    float sum = 1e-20f;  // scores may all underflow to 0
    for (int64_t k = 0; k < choice.chosen; ++k) sum += to[k] = own[found[k]];
    for (int64_t k = 0; k < choice.chosen; ++k) to[k] = (choice.normalized ? to[k] / sum : to[k]) * choice.factor;
  };
  parallel_for(T < 16 ? 1 : threads, T, choose);
}

}  // namespace baltoro
