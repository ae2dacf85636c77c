/* The usual case of the cache's records, compiled: found, written and evicted as store.py does it, byte for byte.
 *
 * store.py is the reference, and says why things are as they are; the names here are its names. Whatever is unusual
 * (damage, a log that cannot be walked, long keys, too large an item) is left to it: the call then answers
 * NotImplemented or False, wherever it has got to, and store.py begins anew with what is there.
 *
 * Other processes write to the memory meanwhile, are killed, or are hostile: a word is read once, by one load, and no
 * offset is used that was not compared with the region's size. What is checked and given out is a copy.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

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

static int
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
static int
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

static void
count_in_row(Records *self, unsigned counter)
{
    if (self->row <= (self->size >> 3) - COUNTERS)
        count_up(&self->words[self->row + counter]);
}

/* Keys */

static bool
put_key(Head *head, unsigned kind, const char *body, Py_ssize_t size)
{
    if (size > BODY_MAX)
        return false;
    uint32_t before = (uint32_t)size << 2 | kind;
    memcpy(head->bytes + 1, &before, KEY_HEAD);
    memcpy(head->bytes + 1 + KEY_HEAD, body, size);
    head->key_size = KEY_HEAD + size;
    return true;
}

/* Bytes of a key, as keys.py makes them. */
static bool
put_encoded(Head *head, PyObject *key)
{
    char *bytes;
    Py_ssize_t size;
    if (!PyBytes_Check(key) || PyBytes_AsStringAndSize(key, &bytes, &size) < 0 || size < KEY_HEAD ||
        size > KEY_HEAD + BODY_MAX) {
        PyErr_Clear();
        return false;
    }
    memcpy(head->bytes + 1, bytes, size);
    head->key_size = size;
    return true;
}

static Status
encode_key(Records *self, Head *head, PyObject *key)
{
    const char *body;
    Py_ssize_t size;
    if (PyUnicode_CheckExact(key)) {
        if (PyUnicode_GetLength(key) > BODY_MAX)
            return ODD;
        if ((body = PyUnicode_AsUTF8AndSize(key, &size)) != NULL)
            return put_key(head, TEXT, body, size) ? OK : ODD;
        PyErr_Clear();
        return ODD;
    }
    if (PyBytes_CheckExact(key)) {
        body = PyBytes_AsString(key);
        return put_key(head, BYTES, body, PyBytes_Size(key)) ? OK : ODD;
    }
    PyObject *encoded = PyObject_CallFunctionObjArgs(self->encode_key, key, NULL);
    if (encoded == NULL)
        return FAILED;
    bool fits = put_encoded(head, encoded);
    Py_DECREF(encoded);
    return fits ? OK : ODD;
}

/* Finding */

/* Have the processor fetch what a bucket has in several places all at once, not one after the other. */
static inline void
prefetch_bucket(const Records *self, uint64_t bucket)
{
    __builtin_prefetch(self->tags + bucket * WAYS);
    __builtin_prefetch(self->entries + bucket * WAYS);
    __builtin_prefetch(self->entries + bucket * WAYS + WAYS / 2);
    __builtin_prefetch(self->frequencies + bucket * WAYS, 1);
}

typedef struct {
    uint64_t slot, entry, value_at;
    uint8_t kind;
    bool has_time;
    double time;
    PyObject *value;
} Found;

typedef enum { FOUND, MISSING, UNSURE, BROKEN } Answer; /* BROKEN: a Python exception is set */

/* The record in a slot, if it is the key's; `wanted`, if given, says of which kinds the value is of use. */
static Answer
look(Records *self, uint64_t slot, Head *head, bool (*wanted)(uint8_t kind, uint64_t size), Found *found)
{
    uint64_t entry = load(&self->entries[slot]);
    uint64_t place = entry & PLACE_MASK, body = (place << 3) + RECORD_HEADER, value_at = body + 1 + head->key_size;
    if (entry == 0)
        return MISSING;
    if (value_at > self->size)
        return UNSURE;
    if (memcmp(self->region + body + 1, head->bytes + 1, head->key_size) != 0)
        return load(&self->entries[slot]) == entry ? MISSING : UNSURE;
    head->bytes[0] = self->region[body];
    found->time = 0;
    found->has_time = head->bytes[0] & EXPIRES;
    found->kind = head->bytes[0] & ~EXPIRES;
    size_t head_size = 1 + head->key_size;
    if (found->has_time) {
        if (value_at + TIME_SIZE > self->size)
            return UNSURE;
        memcpy(head->bytes + head_size, self->region + value_at, TIME_SIZE);
        memcpy(&found->time, head->bytes + head_size, TIME_SIZE);
        head_size += TIME_SIZE;
        value_at += TIME_SIZE;
    }
    uint64_t first = load(&self->words[place]), end = body + (first & LENGTH_MASK);
    if (first >> SLOT_BITS != slot || end < value_at || end > self->size)
        return UNSURE;
    uint64_t size = end - value_at;
    if (wanted != NULL && !wanted(found->kind, size))
        return UNSURE;
    found->value = PyBytes_FromStringAndSize((const char *)self->region + value_at, (Py_ssize_t)size);
    if (found->value == NULL)
        return BROKEN;
    uint64_t digest = 0;
    int status = checksum(self, head, head_size, found->value, &digest);
    if (status < 0 || digest != load(&self->words[place + 1])) {
        Py_DECREF(found->value);
        return status < 0 ? BROKEN : UNSURE;
    }
    found->slot = slot;
    found->entry = entry;
    found->value_at = self->base + value_at;
    return FOUND;
}

static Answer
find(Records *self, Head *head, bool (*wanted)(uint8_t, uint64_t), Found *found)
{
    uint64_t hashed = XXH3_64bits_withSeed(head->bytes + 1, head->key_size, self->seed), tag = hashed >> PLACE_BITS;
    uint64_t first = hashed % self->buckets, bucket = first;
    uint8_t byte = tag_byte(tag);
    prefetch_bucket(self, first);
    for (;;) {
        for (uint64_t slot = bucket * WAYS; slot < (bucket + 1) * WAYS; slot++) {
            if (self->tags[slot] != byte)
                continue;
            Answer answer = look(self, slot, head, wanted, found);
            if (answer != MISSING)
                return answer;
            if (load(&self->entries[slot]) >> PLACE_BITS == tag)
                return UNSURE; /* by all odds it is this key's, and damaged */
        }
        if (bucket != first)
            return MISSING;
        bucket = other_bucket(self, tag, first);
        if (bucket == first)
            return MISSING;
    }
}

PyDoc_STRVAR(find_doc, "The record of a key, given as bytes: as Store.find; NotImplemented if that is to look.");
static PyObject *
Records_find(Records *self, PyObject *key)
{
    Head head;
    Found found;
    if (!put_encoded(&head, key))
        return Py_NewRef(Py_NotImplemented);
    switch (find(self, &head, NULL, &found)) {
    case MISSING:
        return Py_NewRef(Py_None);
    case UNSURE:
        return Py_NewRef(Py_NotImplemented);
    case BROKEN:
        return NULL;
    case FOUND:
        break;
    }
    PyObject *time = found.has_time ? PyFloat_FromDouble(found.time) : Py_NewRef(Py_None);
    return Py_BuildValue("KKiNNK", (unsigned long long)found.slot, (unsigned long long)found.entry, (int)found.kind,
                         time, found.value, (unsigned long long)found.value_at);
}

static bool
is_quickly_read(uint8_t kind, uint64_t size)
{
    return kind == RAW || (kind == PLAIN && size <= UNCHECKED_MAX);
}

PyDoc_STRVAR(get_doc, "The value of a key, counted as a hit; NotImplemented if there is none, or it is unusual.");
static PyObject *
Records_get(Records *self, PyObject *key)
{
    Head head;
    Found found;
    switch (encode_key(self, &head, key)) {
    case FAILED:
        return NULL;
    case ODD:
        return Py_NewRef(Py_NotImplemented);
    case OK:
        break;
    }
    switch (find(self, &head, is_quickly_read, &found)) {
    case BROKEN:
        return NULL;
    case MISSING:
    case UNSURE:
        return Py_NewRef(Py_NotImplemented);
    case FOUND:
        break;
    }
    double time = 0;
    if (found.has_time && now(self, &time) < 0) {
        Py_DECREF(found.value);
        return NULL;
    }
    if (found.has_time && !(found.time > time)) {
        Py_DECREF(found.value);
        return Py_NewRef(Py_NotImplemented);
    }
    PyObject *value = found.value;
    if (found.kind == PLAIN) {
        value = PyObject_CallFunctionObjArgs(self->unpack, found.value, NULL);
        Py_DECREF(found.value);
        if (value == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_ValueError))
                return NULL;
            PyErr_Clear(); /* values.py reads what msgpack alone does not */
            return Py_NewRef(Py_NotImplemented);
        }
    }
    count_in_row(self, HITS);
    uint8_t frequency = self->frequencies[found.slot];
    if (frequency != FREQUENCY_MAX)
        store_byte(&self->frequencies[found.slot], frequency < FREQUENCY_MAX ? frequency + 1 : FREQUENCY_MAX);
    return value;
}

/* Writing: by the one writer */

static bool
is_sane(const Log *log)
{
    uint64_t head = load(log->head), tail = load(log->tail);
    return tail <= head && head - tail <= log->size && !((head | tail) & 7) && head < HEAD_MAX;
}

static bool
is_much_dead(const Log *log)
{
    return load(log->dead) > log->size / DEAD_SHARE;
}

static bool
is_dead(const Records *self, uint64_t place, uint64_t first)
{
    uint64_t slot = first >> SLOT_BITS;
    return slot >= self->slots || (load(&self->entries[slot]) & PLACE_MASK) != place;
}

/* Whether the time of the record at a place is up. `*time` is NaN until somebody asks for it. */
static int
is_over(Records *self, uint64_t place, double *time)
{
    uint64_t body = (place << 3) + RECORD_HEADER;
    if (body + 1 + KEY_HEAD > self->size)
        return 1;
    if (!(self->region[body] & EXPIRES))
        return 0;
    uint32_t before;
    memcpy(&before, self->region + body + 1, KEY_HEAD);
    uint64_t at = body + 1 + KEY_HEAD + (before >> 2);
    if (at + TIME_SIZE > self->size)
        return 1; /* it is damaged, and has no time */
    double until;
    memcpy(&until, self->region + at, TIME_SIZE);
    if (*time != *time && now(self, time) < 0)
        return -1;
    return until <= *time;
}

static void
count_dead(Records *self, uint64_t place)
{
    if (place >= self->size >> 3)
        return; /* a damaged entry, which pointed nowhere */
    Log *log = place >= self->main.at >> 3 ? &self->main : &self->small;
    uint64_t size = record_size(load(&self->words[place]) & LENGTH_MASK), dead = load(log->dead);
    store(log->dead, dead > log->size || size > log->size - dead ? log->size : dead + size);
}

static uint8_t *
ghosts_of(Records *self, uint64_t bucket, uint64_t tag)
{
    uint64_t other = other_bucket(self, tag, bucket);
    return self->ghosts + (bucket < other ? bucket : other) * WAYS * 2;
}

static void
remember_ghost(Records *self, uint64_t slot, uint64_t tag)
{
    uint8_t *ghosts = ghosts_of(self, slot / WAYS, tag);
    uint16_t ghost = (uint16_t)(tag >> 8);
    memmove(ghosts + 2, ghosts, 2 * GHOSTS - 2);
    memcpy(ghosts, &ghost, sizeof ghost);
}

static bool
forget_ghost(Records *self, uint64_t bucket, uint64_t tag)
{
    uint8_t *ghosts = ghosts_of(self, bucket, tag);
    uint16_t ghost = (uint16_t)(tag >> 8);
    for (int at = 0; ghost && at <= 2 * GHOSTS - 2; at++)
        if (memcmp(ghosts + at, &ghost, sizeof ghost) == 0) {
            if (at & 1)
                return false;
            memset(ghosts + at, 0, sizeof ghost);
            return true;
        }
    return false;
}

static void
drop(Records *self, uint64_t slot)
{
    store(&self->entries[slot], 0);
    store_byte(&self->tags[slot], 0);
    uint64_t items = load(&self->words[ITEMS]);
    store(&self->words[ITEMS], items ? items - 1 : 0);
}

static void
evict(Records *self, uint64_t slot)
{
    uint64_t entry = load(&self->entries[slot]);
    drop(self, slot);
    count_up(&self->words[EVICTED]);
    if ((entry & PLACE_MASK) < self->main.at >> 3)
        remember_ghost(self, slot, entry >> PLACE_BITS);
}

typedef struct {
    uint64_t head, place;
} Room;

static bool
fit(Records *self, Log *log, uint64_t size, uint64_t limit, Room *room)
{
    uint64_t head = load(log->head), used = head - load(log->tail), at = head % log->size, to_end = log->size - at;
    if (used > limit)
        return false;
    if (size <= to_end) {
        *room = (Room){head, (log->at + at) >> 3};
        return size <= limit - used;
    }
    if (to_end + size > limit - used)
        return false;
    store(&self->words[(log->at + at) >> 3], FILLER | to_end);
    store(log->head, head + to_end);
    *room = (Room){head + to_end, log->at >> 3};
    return true;
}

static Status make_room(Records *self, Log *log, uint64_t size, double *time, Room *room);

/* Copy the record of a slot to the head of `target`, or evict it if there is no room. */
static Status
move_on(Records *self, Log *log, Log *target, uint64_t slot, uint64_t size, double *time, bool *moved)
{
    uint64_t entry = load(&self->entries[slot]), source = (entry & PLACE_MASK) << 3;
    Room room;
    *moved = false;
    if (target != log) {
        Status status = make_room(self, target, size, time, &room);
        if (status != OK)
            return status;
        if (load(&self->entries[slot]) != entry)
            return OK;
    }
    else if (size > target->size - target->limit || !fit(self, target, size, target->size, &room)) {
        evict(self, slot);
        return OK;
    }
    if (source + size > self->size)
        return ODD;
    memmove(self->region + (room.place << 3), self->region + source, size);
    store(target->head, room.head + size);
    uint8_t frequency = self->frequencies[slot];
    store_byte(&self->frequencies[slot], target == log && frequency ? frequency - 1 : 0);
    store(&self->entries[slot], (entry & ~PLACE_MASK) | room.place);
    *moved = true;
    return OK;
}

static int
has_free_tail(Records *self, Log *log, double *time)
{
    uint64_t tail = load(log->tail);
    if (tail == load(log->head))
        return 1;
    uint64_t place = (log->at + tail % log->size) >> 3, first = load(&self->words[place]);
    return first >= FILLER || is_dead(self, place, first) ? 1 : is_over(self, place, time);
}

/* Which log the record of a slot goes to when the tail of `log` comes to it; NULL if it is evicted. */
static Status
target_of(Records *self, Log *log, uint64_t slot, double *time, Log **target)
{
    bool is_small = log == &self->small;
    *target = is_much_dead(log) ? log : NULL;
    if (self->frequencies[slot] > (is_small ? 1 : 0))
        *target = &self->main;
    else if (is_small) {
        int is_free = is_much_dead(&self->main) ? 1 : has_free_tail(self, &self->main, time);
        if (is_free < 0)
            return FAILED;
        if (is_free)
            *target = &self->main;
    }
    return OK;
}

/* Move the tail past one record, and the record on if it is worth it. */
static Status
pass(Records *self, Log *log, bool may_rewrite, double *time, bool *moved)
{
    *moved = false;
    if (!is_sane(log))
        return ODD;
    uint64_t tail = load(log->tail), used = load(log->head) - tail, at = tail % log->size, to_end = log->size - at;
    uint64_t place = (log->at + at) >> 3, first = load(&self->words[place]);
    uint64_t size = first >= FILLER ? first & LENGTH_MASK : record_size(first & LENGTH_MASK);
    if (size == 0 || size > used || size > to_end)
        return ODD;
    if (first < FILLER) {
        uint64_t slot = first >> SLOT_BITS;
        if (is_dead(self, place, first)) {
            uint64_t dead = load(log->dead);
            store(log->dead, dead > size ? dead - size : 0);
        }
        else {
            int over = is_over(self, place, time);
            if (over < 0)
                return FAILED;
            Log *target = NULL;
            if (over) {
                drop(self, slot);
                count_up(&self->words[EXPIRED]);
            }
            else if (may_rewrite && target_of(self, log, slot, time, &target) != OK)
                return FAILED;
            else if (target == NULL)
                evict(self, slot);
            else {
                Status status = move_on(self, log, target, slot, size, time, moved);
                if (status != OK)
                    return status;
            }
        }
    }
    if (load(log->tail) == tail)
        store(log->tail, tail + size);
    return OK;
}

static Status
make_room(Records *self, Log *log, uint64_t size, double *time, Room *room)
{
    int rewrites = REWRITES_MAX;
    while (!fit(self, log, size, log->limit, room)) {
        if (log == &self->main)
            store(&self->words[FULL], 1);
        while (load(log->head) - load(log->tail) + 2 * size > log->limit) { /* twice: its end may be in the way */
            bool moved;
            Status status = pass(self, log, rewrites > 0, time, &moved);
            if (status != OK)
                return status;
            rewrites -= moved;
        }
        if (!is_sane(log))
            return ODD;
    }
    return OK;
}

/* The slot whose record is the key's, sound or not; `slots` if there is none. */
static uint64_t
slot_of(const Records *self, const Head *head, const uint64_t buckets[2], uint64_t tag)
{
    uint8_t byte = tag_byte(tag);
    for (int number = 0; number < 2; number++)
        for (uint64_t slot = buckets[number] * WAYS; slot < (buckets[number] + 1) * WAYS; slot++) {
            if (self->tags[slot] != byte)
                continue;
            uint64_t place = load(&self->entries[slot]) & PLACE_MASK, body = (place << 3) + RECORD_HEADER;
            if (place && body + 1 + head->key_size <= self->size &&
                memcmp(self->region + body + 1, head->bytes + 1, head->key_size) == 0 &&
                load(&self->words[place]) >> SLOT_BITS == slot)
                return slot;
        }
    return self->slots;
}

/* Whether an entry has this tag: that of a key which is not found there is damaged, by all odds. */
static bool
has_tag(const Records *self, const uint64_t buckets[2], uint64_t tag)
{
    for (int number = 0; number < 2; number++)
        for (uint64_t slot = buckets[number] * WAYS; slot < (buckets[number] + 1) * WAYS; slot++) {
            uint64_t entry = load(&self->entries[slot]);
            if (entry && entry >> PLACE_BITS == tag)
                return true;
        }
    return false;
}

/* How much there is to lose in a slot, as a number. */
static int
worth(const Records *self, uint64_t slot)
{
    uint64_t entry = load(&self->entries[slot]);
    return entry ? 2 * self->frequencies[slot] + ((entry & PLACE_MASK) >= self->main.at >> 3) : -1;
}

static int
room_in(const Records *self, uint64_t bucket)
{
    int count = 0;
    for (int way = 0; way < WAYS; way++)
        count += self->tags[bucket * WAYS + way] == 0;
    return count;
}

static uint64_t
free_slot(Records *self, const uint64_t buckets[2])
{
    int room = room_in(self, buckets[0]);
    uint64_t bucket = buckets[room < ROOM_MIN && room < room_in(self, buckets[1])];
    for (uint64_t slot = bucket * WAYS; slot < (bucket + 1) * WAYS; slot++)
        if (self->tags[slot] == 0) {
            uint64_t lost = load(&self->entries[slot]);
            if (lost) { /* what has lost its tag cannot be found any more */
                drop(self, slot);
                count_dead(self, lost & PLACE_MASK);
            }
            return slot;
        }
    uint64_t least = buckets[0] * WAYS;
    for (int number = 0; number < 2; number++)
        for (uint64_t slot = buckets[number] * WAYS; slot < (buckets[number] + 1) * WAYS; slot++)
            if (worth(self, slot) < worth(self, least))
                least = slot;
    uint64_t entry = load(&self->entries[least]);
    if (entry) {
        evict(self, least);
        count_dead(self, entry & PLACE_MASK);
    }
    return least;
}

static Status
put(Records *self, Head *head, size_t head_size, PyObject *value)
{
    uint64_t value_size = (uint64_t)PyBytes_Size(value), length = head_size + value_size, size = record_size(length);
    uint64_t digest;
    if (size > self->item_max || !is_sane(&self->small) || !is_sane(&self->main))
        return ODD;
    if (checksum(self, head, head_size, value, &digest) < 0)
        return FAILED;
    uint64_t hashed = XXH3_64bits_withSeed(head->bytes + 1, head->key_size, self->seed), tag = hashed >> PLACE_BITS;
    uint64_t first = hashed % self->buckets, buckets[] = {first, other_bucket(self, tag, first)};
    uint64_t slot = slot_of(self, head, buckets, tag);
    bool hot;
    if (slot < self->slots)
        hot = (load(&self->entries[slot]) & PLACE_MASK) >= self->main.at >> 3 || self->frequencies[slot] > 1;
    else if (has_tag(self, buckets, tag))
        return ODD;
    else {
        slot = free_slot(self, buckets);
        hot = !load(&self->words[FULL]) || is_much_dead(&self->main) || forget_ghost(self, first, tag);
    }
    Log *log = hot || size > self->small_item_max ? &self->main : &self->small;
    double time = Py_NAN;
    uint64_t log_head = load(log->head), at = log_head % log->size, used = log_head - load(log->tail);
    Room room = {log_head, (log->at + at) >> 3};
    if (at + size > log->size || used > log->limit || size > log->limit - used) {
        Status status = make_room(self, log, size, &time, &room);
        if (status != OK)
            return status;
    }
    uint8_t *body = self->region + (room.place << 3) + RECORD_HEADER;
    store(&self->words[room.place], slot << SLOT_BITS | length);
    store(&self->words[room.place + 1], digest);
    memcpy(body, head->bytes, head_size);
    memcpy(body + head_size, PyBytes_AsString(value), value_size);
    store(log->head, room.head + size);
    uint64_t entry = tag << PLACE_BITS | room.place, old = load(&self->entries[slot]);
    if (old) {
        store(&self->entries[slot], entry);
        count_dead(self, old & PLACE_MASK);
    }
    else {
        store_byte(&self->tags[slot], tag_byte(tag));
        store_byte(&self->frequencies[slot], 0);
        store(&self->entries[slot], entry);
        count_up(&self->words[ITEMS]);
    }
    return OK;
}

/* Arguments: key, value, kind, time. */
static Status
put_arguments(Records *self, Head *head, PyObject *const *arguments)
{
    long kind = PyLong_AsLong(arguments[2]);
    if (kind == -1 && PyErr_Occurred())
        return FAILED;
    if (!PyBytes_Check(arguments[1]) || kind < 0 || kind >= EXPIRES)
        return ODD;
    size_t head_size = 1 + head->key_size;
    head->bytes[0] = (uint8_t)kind;
    if (arguments[3] != Py_None) {
        double time = PyFloat_AsDouble(arguments[3]);
        if (time == -1.0 && PyErr_Occurred())
            return FAILED;
        head->bytes[0] |= EXPIRES;
        memcpy(head->bytes + head_size, &time, TIME_SIZE);
        head_size += TIME_SIZE;
    }
    return put(self, head, head_size, arguments[1]);
}

static bool
has_four_arguments(Py_ssize_t count)
{
    if (count != 4)
        PyErr_SetString(PyExc_TypeError, "expected a key, a value, a kind and a time");
    return count == 4;
}

PyDoc_STRVAR(put_doc, "Write a record, its key given as bytes: as Store.put; False if that is to do it.");
static PyObject *
Records_put(Records *self, PyObject *const *arguments, Py_ssize_t count)
{
    Head head;
    if (!has_four_arguments(count))
        return NULL;
    Status status = put_encoded(&head, arguments[0]) ? put_arguments(self, &head, arguments) : ODD;
    return status == FAILED ? NULL : Py_NewRef(status == OK ? Py_True : Py_False);
}

PyDoc_STRVAR(set_doc, "Write a record and count it; False if others are to do so.");
static PyObject *
Records_set(Records *self, PyObject *const *arguments, Py_ssize_t count)
{
    Head head;
    if (!has_four_arguments(count))
        return NULL;
    Status status = encode_key(self, &head, arguments[0]);
    if (status == OK)
        status = put_arguments(self, &head, arguments);
    if (status == OK)
        count_in_row(self, SETS);
    return status == FAILED ? NULL : Py_NewRef(status == OK ? Py_True : Py_False);
}

/* The type */

/* Whether `count` things of `size` bytes, from `at` on, are within the region. */
static bool
is_within(const Records *self, uint64_t at, uint64_t count, uint64_t size)
{
    return at <= self->size && count <= (self->size - at) / size;
}

/* Whether a log can have this place, size and limit. */
static bool
is_log(const Records *self, const unsigned long long log[3])
{
    return log[1] && log[2] <= log[1] && is_within(self, log[0], log[1], 1) && !((log[0] | log[1] | log[2]) & 7);
}

static Log
make_log(const Records *self, const unsigned long long log[3], int head)
{
    return (Log){log[0], log[1], log[2], self->words + head, self->words + head + 1, self->words + head + 2};
}

static PyObject *
Records_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"mapping",   "base",       "size",     "buckets", "seed", "tags_at", "frequencies_at",
                            "ghosts_at", "entries_at", "item_max", "small",   "main", "clock",   "encode_key",
                            "unpack",    "digest",     NULL};
    PyObject *mapping, *clock, *encode_key, *unpack, *digest;
    unsigned long long base, size, buckets, seed, tags, frequencies, ghosts, entries, item_max, small[3], main[3];
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OKKKKKKKKK(KKK)(KKK)OOOO:Records", names, &mapping, &base,
                                     &size, &buckets, &seed, &tags, &frequencies, &ghosts, &entries, &item_max,
                                     &small[0], &small[1], &small[2], &main[0], &main[1], &main[2], &clock,
                                     &encode_key, &unpack, &digest))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Records *self = (Records *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    if (PyObject_GetBuffer(mapping, &self->mapping, PyBUF_WRITABLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->base = base;
    self->size = size;
    self->row = UINT64_MAX;
    self->seed = seed;
    self->buckets = buckets;
    self->slots = buckets * WAYS;
    self->item_max = item_max;
    self->clock = Py_NewRef(clock);
    self->encode_key = Py_NewRef(encode_key);
    self->unpack = Py_NewRef(unpack);
    self->digest = Py_NewRef(digest);
    uint64_t there = (uint64_t)self->mapping.len, address = (uint64_t)(uintptr_t)self->mapping.buf;
    bool fits = base <= there && size <= there - base && !((address | base | entries) & 7);
    fits &= buckets && buckets < BUCKETS_END && is_within(self, 0, EXPIRED + 1, 8);
    fits &= is_within(self, tags, self->slots, 1) && is_within(self, frequencies, self->slots, 1);
    fits &= is_within(self, ghosts, self->slots, 2) && is_within(self, entries, self->slots, 8);
    fits &= is_log(self, small) && is_log(self, main);
    if (!fits) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "what is described is not within the memory");
        return NULL;
    }
    self->region = (uint8_t *)self->mapping.buf + base;
    self->words = (uint64_t *)self->region;
    self->tags = self->region + tags;
    self->frequencies = self->region + frequencies;
    self->ghosts = self->region + ghosts;
    self->entries = (uint64_t *)(self->region + entries);
    self->mix = MIX % buckets;
    self->small = make_log(self, small, SMALL_HEAD);
    self->main = make_log(self, main, MAIN_HEAD);
    self->small_item_max = self->small.limit / 2;
    return (PyObject *)self;
}

static int
Records_traverse(Records *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->clock);
    Py_VISIT(self->encode_key);
    Py_VISIT(self->unpack);
    Py_VISIT(self->digest);
    return 0;
}

static void
Records_dealloc(Records *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->clock);
    Py_XDECREF(self->encode_key);
    Py_XDECREF(self->unpack);
    Py_XDECREF(self->digest);
    if (self->mapping.obj != NULL)
        PyBuffer_Release(&self->mapping);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef Records_methods[] = {
    {"find", (PyCFunction)Records_find, METH_O, find_doc},
    {"get", (PyCFunction)Records_get, METH_O, get_doc},
    {"put", (PyCFunction)(void (*)(void))Records_put, METH_FASTCALL, put_doc},
    {"set", (PyCFunction)(void (*)(void))Records_set, METH_FASTCALL, set_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Records_members[] = {
    {"row", T_ULONGLONG, offsetof(Records, row), 0, "The number of the first word of the counters to count in; none at first."},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(type_doc, "The records of one cache, in the memory of its region, for as long as that is mapped.");
static PyType_Slot Records_slots[] = {
    {Py_tp_doc, (void *)type_doc},         {Py_tp_new, Records_new},     {Py_tp_dealloc, Records_dealloc},
    {Py_tp_traverse, Records_traverse},    {Py_tp_methods, Records_methods}, {Py_tp_members, Records_members},
    {0, NULL},
};

static PyType_Spec Records_spec = {
    .name = "persistmem.cache._compiled.Records",
    .basicsize = sizeof(Records),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = Records_slots,
};

static int
fill_module(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&Records_spec);
    int status = type == NULL ? -1 : PyModule_AddObjectRef(module, "Records", type);
    Py_XDECREF(type);
    return status;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "persistmem.cache._compiled",
    .m_doc = "The usual case of the cache's records, compiled.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__compiled(void)
{
    return PyModuleDef_Init(&module);
}
