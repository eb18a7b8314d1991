// What a policy in C needs beside policy.h, which `signalpost plugin build` generates from wit/: texts, and JSON.
//
// Memory: what a call gets, and what it returns, is freed after it by the code of policy.h. So whatever goes into a result has to be
// allocated, as the functions below do it; a piece of a call's own arguments has to be copied first.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "policy.h"

typedef policy_string_t text_t;

// A text that stands in the source, to be read only.
#define TEXT(literal) ((text_t){(uint8_t *)(literal), sizeof(literal) - 1})

// No memory is the end of the call: the server counts a fault, and goes on with a new instance.
static inline void *need(void *memory, size_t size) {
    void *grown = realloc(memory, size ? size : 1);
    if (!grown) abort();
    return grown;
}

static inline void add(text_t *text, text_t more) {
    if (more.len == 0) return;
    text->ptr = need(text->ptr, text->len + more.len);
    memcpy(text->ptr + text->len, more.ptr, more.len);
    text->len += more.len;
}

static inline text_t copy(text_t text) {
    text_t copied = {0};
    add(&copied, text);
    return copied;
}

static inline bool same(text_t one, text_t other) {
    return one.len == other.len && memcmp(one.ptr, other.ptr, one.len) == 0;
}

// A list of one, with its own copy.
static inline policy_list_string_t list_of(text_t text) {
    policy_list_string_t list = {need(NULL, sizeof(text_t)), 1};
    list.ptr[0] = copy(text);
    return list;
}

// JSON as it was written. What comes from the server is valid, so that nothing here has to check it: a piece of it is one value.

static inline void json_skip_space(text_t *json) {
    while (json->len > 0 && memchr(" \t\r\n,:", json->ptr[0], 6)) json->ptr++, json->len--;
}

// Takes the first value off.
static inline text_t json_take(text_t *json) {
    json_skip_space(json);
    size_t end = 0, depth = 0;
    bool inside_string = false;
    while (end < json->len) {
        uint8_t byte = json->ptr[end++];
        if (inside_string) {
            if (byte == '\\') end++;
            if (byte == '"') inside_string = false;
        } else if (byte == '"') {
            inside_string = true;
        } else if (byte == '{' || byte == '[') {
            depth++;
        } else if (byte == '}' || byte == ']') {
            depth--;
        }
        bool more = end < json->len && !memchr(" \t\r\n,:]}", json->ptr[end], 8);
        if (depth == 0 && !inside_string && (byte == '"' || byte == '}' || byte == ']' || !more)) break;
    }
    text_t value = {json->ptr, end};
    json->ptr += end, json->len -= end;
    return value;
}

// The members of an object, one for each call: begin with a copy of the object. False where there is none left, and where it is no object.
static inline bool json_next(text_t *object, text_t *name, text_t *value) {
    json_skip_space(object);
    if (object->len > 0 && object->ptr[0] == '{') object->ptr++, object->len--;
    json_skip_space(object);
    if (object->len == 0 || object->ptr[0] != '"') return false;
    *name = json_take(object);
    *value = json_take(object);
    return true;
}

// The code unit of a `\uXXXX`, whose digits begin at `hex`.
static inline uint32_t json_unit(const uint8_t *hex) {
    char digits[5] = {(char)hex[0], (char)hex[1], (char)hex[2], (char)hex[3], 0};
    return (uint32_t)strtoul(digits, NULL, 16);
}

static inline void json_add_utf8(text_t *text, uint32_t c) {
    uint8_t bytes[4];
    size_t len = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t at = len - 1; at > 0; at--, c >>= 6) bytes[at] = 0x80 | (c & 0x3f);
    bytes[0] = (uint8_t)(c | (len == 1 ? 0 : 0xf00 >> len));
    add(text, (text_t){bytes, len});
}

// What a JSON string says, newly allocated. False where the value is no string.
static inline bool json_text(text_t value, text_t *text) {
    *text = (text_t){0};
    if (value.len < 2 || value.ptr[0] != '"') return false;
    const uint8_t *at = value.ptr + 1, *end = value.ptr + value.len - 1;
    while (at < end) {
        const uint8_t *escape = memchr(at, '\\', (size_t)(end - at));
        add(text, (text_t){(uint8_t *)at, (size_t)((escape ? escape : end) - at)});
        if (!escape) break;
        const char *plain = memchr("\"\\/bfnrt", escape[1], 8);
        at = escape + 2;
        if (plain) {
            add(text, (text_t){(uint8_t *)&"\"\\/\b\f\n\r\t"[plain - "\"\\/bfnrt"], 1});
            continue;
        }
        uint32_t c = json_unit(at);
        at += 4;
        uint32_t low = end - at >= 6 && at[0] == '\\' && at[1] == 'u' ? json_unit(at + 2) : 0;
        if (c >= 0xd800 && c < 0xdc00 && low >= 0xdc00 && low < 0xe000) {
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
            at += 6;
        }
        json_add_utf8(text, c >= 0xd800 && c < 0xe000 ? 0xfffd : c);
    }
    return true;
}

// Whether a JSON string says this.
static inline bool json_says(text_t value, text_t expected) {
    text_t text;
    bool says = json_text(value, &text) && same(text, expected);
    free(text.ptr);
    return says;
}

// The member of this name. False where there is none.
static inline bool json_get(text_t object, text_t wanted, text_t *value) {
    for (text_t name; json_next(&object, &name, value);) {
        if (json_says(name, wanted)) return true;
    }
    return false;
}

// The name of a user or the like, newly allocated: a string that is not empty, or a number as it is written.
static inline bool json_id(text_t value, text_t *id) {
    if (json_text(value, id)) return id->len > 0;
    bool is_whole = value.len > 0 && strspn((const char *)value.ptr, "-0123456789") >= value.len;
    if (is_whole) *id = copy(value);
    return is_whole;
}

// Adds a text as a JSON string.
static inline void json_add_text(text_t *json, text_t text) {
    add(json, TEXT("\""));
    for (size_t at = 0, begin = 0; at <= text.len; at++) {
        bool is_plain = at < text.len && text.ptr[at] >= 0x20 && text.ptr[at] != '"' && text.ptr[at] != '\\';
        if (is_plain) continue;
        add(json, (text_t){text.ptr + begin, at - begin});
        begin = at + 1;
        if (at == text.len) break;
        uint8_t byte = text.ptr[at], hex[] = {'\\', 'u', '0', '0', "0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
        add(json, (text_t){hex, sizeof hex});
    }
    add(json, TEXT("\""));
}

// Adds a member, whose value is JSON already, to an object that is being written: begin with an empty text, end with `json_end`.
static inline void json_add(text_t *object, text_t name, text_t value) {
    add(object, object->len == 0 ? TEXT("{") : TEXT(","));
    json_add_text(object, name);
    add(object, TEXT(":"));
    add(object, value);
}

static inline void json_end(text_t *object) {
    add(object, object->len == 0 ? TEXT("{}") : TEXT("}"));
}
