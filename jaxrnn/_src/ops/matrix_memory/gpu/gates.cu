// The gradients by the gates of a matrix memory, from what products left at each step:
//
//   read = q' d_q    wrote = k' d_k    anchor = C' G, before each chunk
//
// The gradient by log f is C' G before the step, and f with it: an anchor, and from step to step what
// is written comes to it and what is read leaves it. Where m came from, the gradient by it goes.

constexpr int THREADS = CHUNK;

struct Shared {
  float log_f[CHUNK], log_i[CHUNK], read[CHUNK], wrote[CHUNK], d_m[CHUNK], share[CHUNK];
  bool real[CHUNK], start[CHUNK];
};
static_assert(sizeof(Shared) <= SHARED, "what `__init__.py` counts");

extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ Args args) {
  SHARED_MEMORY(memory);
  Shared& all = *reinterpret_cast<Shared*>(memory);
  const Head head(args, args.first + blockIdx.x, 1);
  const int n = threadIdx.x, chunks = head.chunks();
  float d_m = D_FINAL_M >= 0 ? head.of<float>(D_FINAL_M)[head.index] : 0;
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    const int step = chunk * CHUNK + n;
    const bool there = step < args.steps, real = head.real(step);
    auto number = [&](int array) { return real ? head.of<float>(array)[head.at(step)] : 0; };
    all.real[n] = real, all.start[n] = head.start(step);
    all.log_f[n] = number(LOG_F), all.log_i[n] = number(LOG_I);
    all.read[n] = number(READ), all.wrote[n] = number(WROTE);
    all.d_m[n] = D_MS >= 0 ? number(D_MS) : 0;
    __syncthreads();
    if (n == 0) {
      float m = head.of<float>(SAVED_M)[head.at_chunk(chunk)], next = 0;
      for (int s = 0; s < SLICES; ++s)
        next += head.of<float>(ANCHORS)[head.at_chunk(chunk) * SLICES + s];
      const float anchor = next;
      for (int k = 0; k < CHUNK; ++k) {
        if (all.start[k]) m = next = 0;
        if (!all.real[k]) continue;
        if (all.log_f[k] == -INFINITE) next *= 0;
        const float kept = all.log_f[k] + m, written = all.log_i[k];
        if (STABILISED) m = larger(kept, written);
        // Of two that are equal, JAX's derivative gives each a half.
        all.share[k] = kept > written ? 1 : kept < written ? 0 : 0.5f;
        all.log_f[k] = next, all.log_i[k] = all.wrote[k];
        next += all.wrote[k] - all.read[k];
      }
      if (STABILISED && chunk == chunks - 1) d_m -= next;  // as the last memory is divided by exp(m)
      for (int k = CHUNK - 1; k >= 0; --k) {
        if (all.real[k]) {
          d_m += all.d_m[k];
          if (STABILISED) {
            d_m -= all.read[k];
            all.log_f[k] += all.share[k] * d_m, all.log_i[k] += (1 - all.share[k]) * d_m;
            d_m *= all.share[k];
          } else {
            d_m -= all.wrote[k];
          }
        }
        if (all.start[k]) d_m = 0;
      }
      if (STABILISED && chunk == 0) d_m += anchor;
    }
    __syncthreads();
    if (there) {
      head.of<float>(D_LOG_F)[head.at(step)] = real ? all.log_f[n] : 0;
      head.of<float>(D_LOG_I)[head.at(step)] = real ? all.log_i[n] : 0;
    }
    __syncthreads();
  }
  if (n == 0) head.of<float>(D_M)[head.index] = d_m;
}
