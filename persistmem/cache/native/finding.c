/* Finding a record, without a lock. */

#include "records.h"

/* Have the processor fetch what a bucket has in several places all at once, not one after the other. */
static inline void
prefetch_bucket(const Records *self, uint64_t bucket)
{
    __builtin_prefetch(self->tags + bucket * WAYS);
    __builtin_prefetch(self->entries + bucket * WAYS);
    __builtin_prefetch(self->entries + bucket * WAYS + WAYS / 2);
    __builtin_prefetch(self->frequencies + bucket * WAYS, 1);
}

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

Answer
find_record(Records *self, Head *head, bool (*wanted)(uint8_t, uint64_t), Found *found)
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
