/* Instructions that the first processors with registers of 64 bytes do not have, from those that they have. */
#pragma once
#include <immintrin.h>

/* Products of bfloat16, pairs of them added to a float (AVX512-BF16). Both are floats with their lower bits cut off. */
#ifndef __AVX512BF16__
static inline __m512 emulated_dpbf16(__m512 sums, __m512i a, __m512i b) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), second = _mm512_castsi512_ps(_mm512_and_si512(a, upper));
    sums = _mm512_fmadd_ps(second, _mm512_castsi512_ps(_mm512_and_si512(b, upper)), sums);
    return _mm512_fmadd_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sums);
}

/* Round to nearest, ties to even; what is not a number stays so. */
static inline __m256i emulated_cvtneps(__m512 values) {
    __m512i bits = _mm512_castps_si512(values), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 wrong = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, wrong, _mm512_set1_epi32(0x7fc0)));
}

static inline __m512i emulated_cvtne2ps(__m512 high, __m512 low) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(emulated_cvtneps(low)), emulated_cvtneps(high), 1);
}

#define _mm512_dpbf16_ps(sums, a, b) emulated_dpbf16((sums), (__m512i)(a), (__m512i)(b))
#define _mm512_cvtneps_pbh(values) ((__m256bh)emulated_cvtneps(values))
#define _mm512_cvtne2ps_pbh(high, low) ((__m512bh)emulated_cvtne2ps((high), (low)))
#endif

/* Unsigned bytes times signed ones, four products added to a sum of 32 bits (AVX512-VNNI). The instruction that adds two products stops
 * at 16 bits: the even ones and the odd ones one after the other. */
#ifndef __AVX512VNNI__
static inline __m512i emulated_dpbusd(__m512i sums, __m512i a, __m512i b) {
    const __m512i lower = _mm512_set1_epi16(0xff);
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(a, lower), _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
    return _mm512_add_epi32(sums, _mm512_add_epi32(even, odd));
}

#define _mm512_dpbusd_epi32(sums, a, b) emulated_dpbusd((sums), (a), (b))
#endif

/* Which of 16 bytes that repeat four times (AVX512-VBMI can name one of 64). */
static inline __m512i one_of_sixteen(__m512i indices, __m512i table) {
#ifdef __AVX512VBMI__
    return _mm512_permutexvar_epi8(indices, table);
#else
    return _mm512_shuffle_epi8(table, _mm512_and_si512(indices, _mm512_set1_epi8(15)));
#endif
}
