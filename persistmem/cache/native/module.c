/* What Python sees: the class Records. */

#include "records.h"

#include <structmember.h>

PyDoc_STRVAR(find_doc, "The record of a key, given as bytes: as Store.find; NotImplemented if that is to look.");
static PyObject *
Records_find(Records *self, PyObject *key)
{
    Head head;
    Found found;
    if (!put_encoded(&head, key))
        return Py_NewRef(Py_NotImplemented);
    switch (find_record(self, &head, NULL, &found)) {
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
    switch (find_record(self, &head, is_quickly_read, &found)) {
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
    return put_record(self, head, head_size, arguments[1]);
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
