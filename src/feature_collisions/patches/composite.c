/* The composite of section 4 and its penalty R(P) (sec. 4.1), with gradients, one band of rows of
   one corner per call. Python runs the calls side by side; they write to rows of their own.

   logits   (K, M, w, w)  P; only inside windows
   sources  (M, C, w, w)  Q
   top,left (M)           a window's first row and column in the image; it may stick out
   lse      (K, H, W)     log of the sum of exp(P) over the windows that cover a pixel
   push     (K, H, W)     sum over those windows of p times dR/dp

   A control parameter p = exp(P - lse) is 0 outside its window, as in the paper's dense planes.
   Whatever the windows' places, nothing outside these arrays is read or written. */

#include <math.h>
#include <stdint.h>

typedef struct {
    int64_t windows, channels, side, height, width;
    const float *logits, *sources;
    const int64_t *top, *left;
    float *lse, *push, *images;
    const float *gradient; /* of the loss with respect to the images, (K, C, H, W) */
    float *logits_gradient;
} Composite;

enum { LARGEST_SIDE = 1024 };

/* exp(x) for x up to 0, without a branch, so that loops of it are vectorised; NaN for NaN, which no
   comparison is true of. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    union { float f; int32_t i; } shifted = {x * 1.44269504088896341f + 12582912.0f}; /* rounds */
    const float n = shifted.f - 12582912.0f;
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    union { uint32_t i; float f; } scale = {((uint32_t)shifted.i + 127u) << 23};
    return y * scale.f;
}

static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* The part of window m in rows [first, last), in the window's own rows and columns. */
typedef struct {
    int64_t first, last, from, to;
} Part;

static Part part_of(const Composite *c, int64_t m, int64_t first, int64_t last) {
    const int64_t w = c->side, top = c->top[m], left = c->left[m];
    return (Part){at_least(first - top, 0), at_most(last - top, w), at_least(0, -left),
                  at_most(w, c->width - left)};
}

/* The images and lse of rows [first, last) of corner k. */
void blend(const Composite *c, int64_t k, int64_t first, int64_t last) {
    const int64_t w = c->side, W = c->width, plane = c->height * W;
    float *most = c->lse + k * plane, *sum = c->push + k * plane; /* not yet needed otherwise */
    float *image = c->images + k * c->channels * plane;
    const int64_t begin = first * W, end = last * W;
    for (int64_t x = begin; x < end; x++) most[x] = -INFINITY, sum[x] = 0;
    for (int64_t channel = 0; channel < c->channels; channel++)
        for (int64_t x = begin; x < end; x++) image[channel * plane + x] = 0;
    for (int64_t m = 0; m < c->windows; m++) {
        const Part part = part_of(c, m, first, last);
        for (int64_t row = part.first; row < part.last; row++) {
            const float *p = c->logits + ((k * c->windows + m) * w + row) * w;
            float *restrict high = most + (c->top[m] + row) * W + c->left[m];
            for (int64_t x = part.from; x < part.to; x++) high[x] = p[x] > high[x] ? p[x] : high[x];
        }
    }
    for (int64_t m = 0; m < c->windows; m++) {
        const Part part = part_of(c, m, first, last);
        for (int64_t row = part.first; row < part.last; row++) {
            const float *p = c->logits + ((k * c->windows + m) * w + row) * w;
            const int64_t place = (c->top[m] + row) * W + c->left[m];
            const float *high = most + place;
            float *restrict total = sum + place;
            float e[LARGEST_SIDE];
            for (int64_t x = part.from; x < part.to; x++) e[x] = exponential(p[x] - high[x]);
            for (int64_t x = part.from; x < part.to; x++) total[x] += e[x];
            for (int64_t channel = 0; channel < c->channels; channel++) {
                const float *q = c->sources + ((m * c->channels + channel) * w + row) * w;
                float *restrict out = image + channel * plane + place;
                for (int64_t x = part.from; x < part.to; x++) out[x] += e[x] * q[x];
            }
        }
    }
    for (int64_t channel = 0; channel < c->channels; channel++)
        for (int64_t x = begin; x < end; x++) image[channel * plane + x] /= sum[x];
    for (int64_t x = begin; x < end; x++) most[x] += logf(sum[x]);
}

/* p of one row of window m, in p[1..w], and 0 in the columns before and after the window. */
static void row_of(const Composite *c, int64_t k, int64_t m, int64_t row, float *restrict p) {
    const int64_t w = c->side, W = c->width, y = c->top[m] + row, left = c->left[m];
    for (int64_t x = 0; x < w + 2; x++) p[x] = 0;
    if (row < 0 || row >= w || y < 0 || y >= c->height) return;
    const int64_t from = at_least(0, -left), to = at_most(w, W - left);
    const float *logits = c->logits + ((k * c->windows + m) * w + row) * w;
    const float *lse = c->lse + (k * c->height + y) * W + left;
    for (int64_t x = from; x < to; x++) p[x + 1] = exponential(logits[x] - lse[x]);
}

static inline float sign(float x) { return (float)((x > 0) - (x < 0)); }

/* dR/dp along one row, given it and its neighbours; differences across the image's border are
   left out. Returns the row's own part of R: to the right and down, and to the left and up where
   the window begins. */
static double slope(const Composite *c, int64_t m, int64_t row, const float *restrict above,
                    const float *restrict p, const float *restrict below, float *restrict s) {
    const int64_t w = c->side, y = c->top[m] + row, left = c->left[m];
    const int64_t from = at_least(0, -left), to = at_most(w, c->width - left);
    const float up = y > 0, down = y + 1 < c->height, begins = row == 0 ? up : 0;
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t x = from; x < to; x++) {
        s[x] = sign(p[x + 1] - p[x]) + sign(p[x + 1] - p[x + 2]) + up * sign(p[x + 1] - above[x + 1]) +
               down * sign(p[x + 1] - below[x + 1]);
        total += fabsf(p[x + 1] - p[x + 2]) + down * fabsf(p[x + 1] - below[x + 1]) +
                 begins * p[x + 1];
    }
    if (left + from > 0)
        total += p[from + 1];
    else
        s[from] -= sign(p[from + 1]);
    if (left + to >= c->width) total -= p[to], s[to - 1] -= sign(p[to]);
    return total;
}

/* R's part in rows [first, last) of corner k, and `push` there. */
double variation(const Composite *c, int64_t k, int64_t first, int64_t last) {
    const int64_t w = c->side, W = c->width;
    float buffers[3][LARGEST_SIDE + 2], s[LARGEST_SIDE];
    double total = 0;
    float *push = c->push + k * c->height * W;
    for (int64_t x = first * W; x < last * W; x++) push[x] = 0;
    for (int64_t m = 0; m < c->windows; m++) {
        const int64_t top = c->top[m], left = c->left[m];
        const int64_t begin = at_least(first, top), end = at_most(last, top + w);
        const int64_t from = at_least(0, -left), to = at_most(w, W - left);
        if (begin >= end || from >= to) continue;
        float *above = buffers[0], *p = buffers[1], *below = buffers[2];
        row_of(c, k, m, begin - top - 1, above);
        row_of(c, k, m, begin - top, p);
        for (int64_t y = begin; y < end; y++) {
            row_of(c, k, m, y - top + 1, below);
            total += slope(c, m, y - top, above, p, below, s);
            float *restrict out = push + y * W + left;
            for (int64_t x = from; x < to; x++) out[x] += p[x + 1] * s[x];
            float *free = above;
            above = p, p = below, below = free;
        }
    }
    return total;
}

/* The logits' gradient in rows [first, last) of corner k: p (dL/dp - sum over windows of p dL/dp),
   where dL/dp = dL/dx q + `weight` dR/dp. */
void descend(const Composite *c, int64_t k, int64_t first, int64_t last, float weight) {
    const int64_t w = c->side, W = c->width, plane = c->height * W;
    const float *gradient = c->gradient + k * c->channels * plane;
    float *push = c->push + k * plane; /* becomes the sum over windows of p dL/dp */
    for (int64_t x = first * W; x < last * W; x++) {
        float mean = weight == 0 ? 0 : weight * push[x];
        for (int64_t channel = 0; channel < c->channels; channel++)
            mean += gradient[channel * plane + x] * c->images[(k * c->channels + channel) * plane + x];
        push[x] = mean;
    }
    float buffers[3][LARGEST_SIDE + 2], s[LARGEST_SIDE];
    for (int64_t m = 0; m < c->windows; m++) {
        const int64_t top = c->top[m], left = c->left[m];
        const int64_t begin = at_least(first, top), end = at_most(last, top + w);
        const int64_t from = at_least(0, -left), to = at_most(w, W - left);
        if (begin >= end || from >= to) continue;
        float *above = buffers[0], *p = buffers[1], *below = buffers[2];
        if (weight != 0) row_of(c, k, m, begin - top - 1, above);
        row_of(c, k, m, begin - top, p);
        for (int64_t y = begin; y < end; y++) {
            if (weight != 0 || y + 1 < end) row_of(c, k, m, y - top + 1, below);
            if (weight != 0) {
                slope(c, m, y - top, above, p, below, s);
                for (int64_t x = from; x < to; x++) s[x] *= weight;
            } else
                for (int64_t x = from; x < to; x++) s[x] = 0;
            for (int64_t channel = 0; channel < c->channels; channel++) {
                const float *q = c->sources + ((m * c->channels + channel) * w + y - top) * w;
                const float *g = gradient + channel * plane + y * W + left;
                for (int64_t x = from; x < to; x++) s[x] += g[x] * q[x];
            }
            const float *mean = push + y * W + left;
            float *restrict out = c->logits_gradient + ((k * c->windows + m) * w + y - top) * w;
            for (int64_t x = from; x < to; x++) out[x] = p[x + 1] * (s[x] - mean[x]);
            float *free = above;
            above = p, p = below, below = free;
        }
    }
}
