/* Writing a record, and making room for it: by the one writer. */

#include "records.h"

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

Status
put_record(Records *self, Head *head, size_t head_size, PyObject *value)
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
