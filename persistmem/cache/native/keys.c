/* Keys as keys.py encodes them: text and bytes here, all others there. */

#include "records.h"

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

bool
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

Status
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
