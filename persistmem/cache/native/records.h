/* The usual case of the cache's records, compiled: found, written and evicted as store.py does it, byte for byte.
 *
 * store.py is the reference, and says why things are as they are; the names here are its names. Whatever is unusual
 * (damage, a log that cannot be walked, long keys, too large an item) is left to it: the call then answers
 * NotImplemented or False, wherever it has got to, and store.py begins anew with what is there.
 *
 * Other processes write to the memory meanwhile, are killed, or are hostile: a word is read once, by one load, and no
 * offset is used that was not compared with the region's size. What is checked and given out is a copy.
 *
 * Here is what the parts share: keys.c encodes keys, finding.c finds, writing.c writes and evicts, module.c is what
 * Python sees of it.
 */

#ifndef PERSISTMEM_RECORDS_H
#define PERSISTMEM_RECORDS_H

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "arenas are little-endian"
#endif

/* The format: layout.py, keys.py and values.py have the same. */
enum { WAYS = 16, GHOSTS = 9, RECORD_HEADER = 16, KEY_HEAD = 4, TIME_SIZE = 8, FREQUENCY_MAX = 3 };
enum { TEXT = 0, BYTES = 1 };
enum { PLAIN = 0, RAW = 1, EXPIRES = 0x80 };
enum { HITS = 0, SETS = 2, COUNTERS = 8 };
enum { ITEMS = 514, FULL, SMALL_HEAD = 520, MAIN_HEAD = 524, EVICTED = 530, EXPIRED };
#define PLACE_BITS 40
#define PLACE_MASK ((UINT64_C(1) << PLACE_BITS) - 1)
#define SLOT_BITS 32
#define LENGTH_MASK UINT64_C(0xFFFFFFFF)
#define FILLER (LENGTH_MASK << SLOT_BITS)
#define MIX UINT64_C(0x9E3779B97F4A7C15)

/* The policy: store.py has the same. */
enum { ROOM_MIN = 4, REWRITES_MAX = 512, DEAD_SHARE = 8, UNCHECKED_MAX = 4096 };
#define HEAD_MAX (UINT64_C(1) << 62)
#define BUCKETS_END (UINT64_C(1) << 28)

/* From so many bytes on a call of the xxhash module pays: it uses the processor's widest registers. */
enum { MODULE_DIGEST_MIN = 2048 };

enum { BODY_MAX = 255 };
/* What stands before a value: a byte that says how to read it, the key, and maybe a time. Longer keys are unusual. */
typedef struct {
    uint8_t bytes[1 + KEY_HEAD + BODY_MAX + TIME_SIZE];
    size_t key_size;
} Head;

typedef struct {
    uint64_t at, size, limit;
    uint64_t *head, *tail, *dead;
} Log;

typedef struct {
    PyObject_HEAD
    Py_buffer mapping;
    uint8_t *region;
    uint64_t *words;
    uint64_t base, size, seed, buckets, slots, item_max, small_item_max, mix;
    uint8_t *tags, *frequencies, *ghosts;
    uint64_t *entries;
    Log small, main;
    unsigned long long row;
    PyObject *clock, *encode_key, *unpack, *digest;
} Records;

typedef enum { OK, ODD, FAILED } Status; /* FAILED: a Python exception is set */

static inline uint64_t load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void store(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
static inline void store_byte(uint8_t *byte, uint8_t value) { __atomic_store_n(byte, value, __ATOMIC_RELEASE); }
static inline void count_up(uint64_t *word) { store(word, load(word) + 1); }
static inline uint64_t record_size(uint64_t length) { return RECORD_HEADER + ((length + 7) & ~UINT64_C(7)); }
static inline uint8_t tag_byte(uint64_t tag) { return tag & 0xFF ? tag & 0xFF : 1; }

/* The other bucket of a tag: store.py's (tag * MIX - bucket) % buckets, in 64 bits. */
static inline uint64_t
other_bucket(const Records *self, uint64_t tag, uint64_t bucket)
{
    return (tag * self->mix + self->buckets - bucket) % self->buckets;
}

static inline int
now(Records *self, double *time)
{
    PyObject *found = PyObject_CallNoArgs(self->clock);
    if (found == NULL)
        return -1;
    *time = PyFloat_AsDouble(found);
    Py_DECREF(found);
    return *time == -1.0 && PyErr_Occurred() ? -1 : 0;
}

/* The checksum of a value, given what stands before it. */
static inline int
checksum(Records *self, const Head *head, size_t head_size, PyObject *value, uint64_t *found)
{
    uint64_t seed = XXH3_64bits(head->bytes, head_size);
    size_t size = (size_t)PyBytes_Size(value);
    if (size < MODULE_DIGEST_MIN) {
        *found = XXH3_64bits_withSeed(PyBytes_AsString(value), size, seed);
        return 0;
    }
    PyObject *digest = PyObject_CallFunction(self->digest, "OK", value, (unsigned long long)seed);
    if (digest == NULL)
        return -1;
    *found = PyLong_AsUnsignedLongLong(digest);
    Py_DECREF(digest);
    return PyErr_Occurred() ? -1 : 0;
}

static inline void
count_in_row(Records *self, unsigned counter)
{
    if (self->row <= (self->size >> 3) - COUNTERS)
        count_up(&self->words[self->row + counter]);
}

/* keys.c */

/* Bytes of a key, as keys.py makes them; false if there are too many. */
bool put_encoded(Head *head, PyObject *key);

Status encode_key(Records *self, Head *head, PyObject *key);

/* finding.c */

typedef struct {
    uint64_t slot, entry, value_at;
    uint8_t kind;
    bool has_time;
    double time;
    PyObject *value;
} Found;

typedef enum { FOUND, MISSING, UNSURE, BROKEN } Answer; /* BROKEN: a Python exception is set */

/* The record of a key; `wanted`, if given, says of which kinds and sizes the value is of use. UNSURE for all that is
 * unusual.
 */
Answer find_record(Records *self, Head *head, bool (*wanted)(uint8_t kind, uint64_t size), Found *found);

/* writing.c */

/* Write a record, by the one writer: its head, kind and time included, is in `head`; the value is bytes. */
Status put_record(Records *self, Head *head, size_t head_size, PyObject *value);

#endif
