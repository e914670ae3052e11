// Kernels of a CPU. Batch norm in training with the addition and the ReLU after it, forward and backward, for
// channels-last images as tables of pixels, [pixels, channels]: each goes through the memory twice, and each thread has
// some of the pixels. And rows of channels that are copied and added up.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

namespace {

using bf16 = std::uint16_t;  // the upper half of a float
constexpr long WIDE = 256;   // channels that `add_rows` sums up at a time

inline float widened(float value) { return value; }

inline float widened(bf16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void narrow(float value, float& result) { result = value; }

inline void narrow(float value, bf16& result) {  // to the nearest, and to even ones; NaN stays NaN as processors make it
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    result = static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// What a thread has of the pixels, and of the sums of all threads [threads, 2, channels].
struct Part {
    long first, last;
    float *one, *two;

    Part(long pixels, long channels, float* sums) {
        const long threads = omp_get_num_threads(), me = omp_get_thread_num();
        first = pixels * me / threads, last = pixels * (me + 1) / threads;
        one = sums + me * 2 * channels, two = one + channels;
        std::fill(one, one + 2 * channels, 0.0f);
    }
};

float total(const float* sums, long channels, long c) {
    float result = 0.0f;
    for (long thread = 0; thread < omp_get_num_threads(); ++thread) result += sums[thread * 2 * channels + c];
    return result;
}

// Mean, 1 / deviation and the running averages, from sums of the values and of their squares, each less a typical value:
// sums of squares lose the digits that they share.
template <typename T, bool BESIDE>
void forward(int threads, long pixels, long channels, const T* x, const T* beside, T* y, const float* weight,
             const float* bias, float* mean, float* scale, float* running_mean, float* running_var, float momentum,
             float eps, float floor, float* room) {
    float *const factor = room, *const typical = room + channels, *const sums = room + 2 * channels;
    // The median of three pixels, since a single one may be far from all others; and not of three corners, as thirds of
    // a batch of 96 would be.
    const long places[] = {pixels / 17 * 3, pixels / 19 * 9, pixels / 23 * 17};
    for (long c = 0; c < channels; ++c) {
        const float p = widened(x[places[0] * channels + c]), q = widened(x[places[1] * channels + c]);
        const float s = widened(x[places[2] * channels + c]);
        typical[c] = std::max(std::min(p, q), std::min(std::max(p, q), s));
    }
#pragma omp parallel num_threads(threads)
    {
        const Part part(pixels, channels, sums);
        float* const __restrict one = part.one;
        float* const __restrict two = part.two;
        const float* const __restrict less = typical;
        long r = part.first;
        for (; r + 4 <= part.last; r += 4) {  // four at a time: the sums are in memory, too
            const T* const __restrict at = x + r * channels;
#pragma omp simd
            for (long c = 0; c < channels; ++c) {
                const float p = widened(at[c]) - less[c], q = widened(at[c + channels]) - less[c];
                const float s = widened(at[c + 2 * channels]) - less[c], t = widened(at[c + 3 * channels]) - less[c];
                one[c] += (p + q) + (s + t);
                two[c] += (p * p + q * q) + (s * s + t * t);
            }
        }
        for (; r < part.last; ++r) {
#pragma omp simd
            for (long c = 0; c < channels; ++c) {
                const float p = widened(x[r * channels + c]) - less[c];
                one[c] += p;
                two[c] += p * p;
            }
        }
#pragma omp barrier
#pragma omp for
        for (long c = 0; c < channels; ++c) {
            const float of_values = total(sums, channels, c), of_squares = total(sums + channels, channels, c);
            const float squares = of_squares - of_values * of_values / pixels;
            const float variance = squares < 0.0f ? 0.0f : squares / pixels;  // NaN stays NaN
            mean[c] = typical[c] + of_values / pixels;
            scale[c] = 1.0f / std::sqrt(variance + eps);
            factor[c] = scale[c] * weight[c];
            running_mean[c] += momentum * (mean[c] - running_mean[c]);
            running_var[c] += momentum * (variance * pixels / (pixels - 1) - running_var[c]);
        }
        for (long r = part.first; r < part.last; ++r) {
            const T* const __restrict in = x + r * channels;
            const T* const __restrict other = BESIDE ? beside + r * channels : nullptr;
            T* const __restrict out = y + r * channels;
#pragma omp simd
            for (long c = 0; c < channels; ++c) {
                float value = (widened(in[c]) - mean[c]) * factor[c] + bias[c];
                if (BESIDE) value += widened(other[c]);
                narrow(value < floor ? floor : value, out[c]);
            }
        }
    }
}

template <typename T, bool BESIDE, bool TWICE>
void backward(int threads, long pixels, long channels, const T* gradient, const T* also, const T* x, const T* y,
              T* of_sum, T* of_x, const float* weight, const float* bias, const float* mean, const float* scale,
              float* of_weight, float* of_bias, float floor, float* room) {
    float *const factor = room, *const each = room + channels, *const by_value = room + 2 * channels;
    float* const sums = room + 3 * channels;
    for (long c = 0; c < channels; ++c) factor[c] = scale[c] * weight[c];
#pragma omp parallel num_threads(threads)
    {
        const Part part(pixels, channels, sums);
        float* const __restrict one = part.one;
        float* const __restrict two = part.two;
        for (long r = part.first; r < part.last; ++r) {
            const long at = r * channels;
            const T* const __restrict g_at = gradient + at;
            const T* const __restrict also_at = TWICE ? also + at : nullptr;
            const T* const __restrict x_at = x + at;
            const T* const __restrict y_at = BESIDE ? y + at : nullptr;
            T* const __restrict out = BESIDE ? of_sum + at : nullptr;
#pragma omp simd
            for (long c = 0; c < channels; ++c) {
                const float centred = widened(x_at[c]) - mean[c];
                const float result = BESIDE ? widened(y_at[c]) : centred * factor[c] + bias[c];
                float g = widened(g_at[c]);
                if (TWICE) g += widened(also_at[c]);
                g = result <= floor ? 0.0f : g;
                if (BESIDE) narrow(g, out[c]);
                one[c] += g;
                two[c] += g * centred;
            }
        }
#pragma omp barrier
#pragma omp for
        for (long c = 0; c < channels; ++c) {
            const float of_gradient = total(sums, channels, c), with_values = total(sums + channels, channels, c);
            of_bias[c] = of_gradient;
            of_weight[c] = with_values * scale[c];
            each[c] = of_gradient / pixels;
            by_value[c] = with_values * scale[c] * scale[c] / pixels;
        }
        for (long r = part.first; r < part.last; ++r) {
            const T* const __restrict g_at = (BESIDE ? of_sum : gradient) + r * channels;
            const T* const __restrict x_at = x + r * channels;
            T* const __restrict out = of_x + r * channels;
#pragma omp simd
            for (long c = 0; c < channels; ++c) {
                const float centred = widened(x_at[c]) - mean[c];
                float g = widened(g_at[c]);
                if (!BESIDE) g = centred * factor[c] + bias[c] <= floor ? 0.0f : g;
                narrow((g - each[c] - centred * by_value[c]) * factor[c], out[c]);
            }
        }
    }
}

// Each row of `target` is the sum of rows of `source`, of none, one or several, in each of several items. The table has
// the rows of `target`, then where those that each is the sum of begin (one more than there are rows), then these.
template <typename S, typename T>
void add_rows(int threads, long items, long channels, long source_step, long target_step, long rows, const S* source,
              T* target, const long* table) {
    const long *const targets = table, *const starts = table + rows, *const sources = starts + rows + 1;
#pragma omp parallel for num_threads(threads)
    for (long item = 0; item < items; ++item) {
        const S* const from = source + item * source_step * channels;
        for (long r = 0; r < rows; ++r) {
            T* const __restrict out = target + (item * target_step + targets[r]) * channels;
            const long *next = sources + starts[r], *const end = sources + starts[r + 1];
            if (next == end) std::fill(out, out + channels, T(0));
            for (long c = 0; c < channels && next != end; c += WIDE) {
                const long wide = std::min(WIDE, channels - c);
                float sums[WIDE] = {};
                for (const long* one = next; one != end; ++one) {
                    const S* const __restrict in = from + *one * channels + c;
#pragma omp simd
                    for (long k = 0; k < wide; ++k) sums[k] += widened(in[k]);
                }
#pragma omp simd
                for (long k = 0; k < wide; ++k) narrow(sums[k], out[c + k]);
            }
        }
    }
}

}  // namespace

// What rresnet.training.norm asks of its kernels. `beside`, `also` and `y` may be null; where `y` is, `also` is, too.
#define KERNELS(T, NAME)                                                                                               \
    void norm_##NAME(int threads, long pixels, long channels, const T* x, const T* beside, T* y, const float* weight,  \
                     const float* bias, float* mean, float* scale, float* running_mean, float* running_var,            \
                     float momentum, float eps, float floor, float* room) {                                            \
        (beside ? forward<T, true> : forward<T, false>)(threads, pixels, channels, x, beside, y, weight, bias, mean,   \
                                                        scale, running_mean, running_var, momentum, eps, floor, room); \
    }                                                                                                                  \
    void norm_backward_##NAME(int threads, long pixels, long channels, const T* gradient, const T* also, const T* x,   \
                              const T* y, T* of_sum, T* of_x, const float* weight, const float* bias,                  \
                              const float* mean, const float* scale, float* of_weight, float* of_bias, float floor,    \
                              float* room) {                                                                           \
        (also ? backward<T, true, true> : y ? backward<T, true, false> : backward<T, false, false>)(                   \
            threads, pixels, channels, gradient, also, x, y, of_sum, of_x, weight, bias, mean, scale, of_weight,       \
            of_bias, floor, room);                                                                                     \
    }

#define ADD_ROWS(S, T, NAME)                                                                                           \
    void add_rows_##NAME(int threads, long items, long channels, long source_step, long target_step, long rows,        \
                         const S* source, T* target, const long* table) {                                              \
        add_rows<S, T>(threads, items, channels, source_step, target_step, rows, source, target, table);               \
    }

extern "C" {
KERNELS(float, fp32)
KERNELS(bf16, bf16)
ADD_ROWS(float, float, fp32_fp32)
ADD_ROWS(float, bf16, fp32_bf16)
ADD_ROWS(bf16, float, bf16_fp32)
ADD_ROWS(bf16, bf16, bf16_bf16)
}
