// What a policy in C needs beside policy.h, which `signalpost plugin build` generates from wit/: texts, JSON that keeps every digit, ids,
// and refusals.
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

// Bytes of an event's data. Reading more, once for each member that is looked for, would take a call longer than it may
// (limits.call_deadline_ms).
#define JSON_BYTES_MAX 16384

// What the server takes by default: sockets.user_id_bytes_max, groups.name_bytes_max.
#define ID_BYTES_MAX 128
#define NAME_BYTES_MAX 128

#define ID "an id: a whole number, or a string, of 1 to 128 bytes, without control characters and without blanks at its ends"

// Without memory the call ends: the server's fault report says so, and the server goes on with a new instance.
static inline void *need(void *memory, size_t size) {
    void *grown = realloc(memory, size ? size : 1);
    if (!grown) {
        text_t why = TEXT("out of memory");
        diagnostics_panicked(&why);
        abort();
    }
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

static inline void add_number(text_t *text, size_t number) {
    if (number >= 10) add_number(text, number / 10);
    uint8_t digit = '0' + number % 10;
    add(text, (text_t){&digit, 1});
}

static inline bool same(text_t one, text_t other) {
    return one.len == other.len && memcmp(one.ptr, other.ptr, one.len) == 0;
}

// A list of texts that stand in the source, each with its own copy: `LIST_OF("pooling.*", "chat.sent")`.
#define LIST_OF(...) list_of((const char *const[]){__VA_ARGS__ __VA_OPT__(,) NULL})

static inline policy_list_string_t list_of(const char *const *texts) {
    policy_list_string_t list = {0};
    for (; *texts; texts++) {
        list.ptr = need(list.ptr, (list.len + 1) * sizeof(text_t));
        list.ptr[list.len++] = copy((text_t){(uint8_t *)*texts, strlen(*texts)});
    }
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
    while (end < json->len) {
        uint8_t byte = json->ptr[end];
        bool is_end = depth == 0 && end > 0 && (byte == ',' || byte == ':' || byte <= ' ');
        if (is_end || (depth == 0 && (byte == '}' || byte == ']'))) break;
        end++;
        if (byte == '"') {
            while (end < json->len && json->ptr[end] != '"') end += json->ptr[end] == '\\' ? 2 : 1;
            end++;
        } else if (byte == '{' || byte == '[') {
            depth++;
        } else if (byte == '}' || byte == ']') {
            depth--;
        }
        if (depth == 0 && (byte == '"' || byte == '}' || byte == ']')) break;
    }
    text_t value = {json->ptr, end};
    json->ptr += end, json->len -= end;
    return value;
}

// The members of an object, one for each call: begin with a copy of the object. False if there is none left, or it is not an object.
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

// What a JSON string says, newly allocated. False if the value is not a string, or one with half of a surrogate pair, which is not a
// character.
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
        if (c >= 0xd800 && c < 0xe000) {
            free(text->ptr);
            *text = (text_t){0};
            return false;
        }
        json_add_utf8(text, c);
    }
    return true;
}

// Whether a JSON string says this. Most have no escapes, and are compared as they are: a client may send thousands of names.
static inline bool json_says(text_t value, text_t expected) {
    if (!memchr(value.ptr, '\\', value.len)) {
        return value.len == expected.len + 2 && value.ptr[0] == '"' && memcmp(value.ptr + 1, expected.ptr, expected.len) == 0;
    }
    text_t text;
    bool says = json_text(value, &text) && same(text, expected);
    free(text.ptr);
    return says;
}

// The member of this name. False if the object does not have it.
static inline bool json_get(text_t object, text_t wanted, text_t *value) {
    for (text_t name; json_next(&object, &name, value);) {
        if (json_says(name, wanted)) return true;
    }
    return false;
}

// Whether the server takes this for a user: it has no control characters, and no blanks at its ends.
static inline bool is_id(text_t text) {
    // The white space of Unicode that is not a control character.
    static const char *const blanks[] = {
        " ", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
        "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
    if (text.len == 0 || text.len > ID_BYTES_MAX) return false;
    for (size_t at = 0; at < sizeof blanks / sizeof *blanks; at++) {
        size_t len = strlen(blanks[at]);
        if (text.len < len) continue;
        if (memcmp(text.ptr, blanks[at], len) == 0 || memcmp(text.ptr + text.len - len, blanks[at], len) == 0) return false;
    }
    for (size_t at = 0; at < text.len; at++) {
        uint8_t byte = text.ptr[at];
        // In UTF-8 the control characters after ASCII are C2 80 to C2 9F.
        bool is_control = byte < 0x20 || byte == 0x7f || (byte == 0xc2 && at + 1 < text.len && text.ptr[at + 1] < 0xa0);
        if (is_control) return false;
    }
    return true;
}

// The id of a user or the like, newly allocated: a string, or a whole number as it is written. False if it is not one.
static inline bool json_id(text_t value, text_t *id) {
    if (json_text(value, id)) {
        if (is_id(*id)) return true;
        free(id->ptr);
        *id = (text_t){0};
        return false;
    }
    size_t digits = value.len > 0 && value.ptr[0] == '-' ? 1 : 0;
    for (size_t at = digits; at < value.len; at++) {
        if (value.ptr[at] < '0' || value.ptr[at] > '9') return false;
    }
    bool is_whole = value.len > digits && value.len <= ID_BYTES_MAX && !same(value, TEXT("-0"));
    if (is_whole) *id = copy(value);
    return is_whole;
}

// Refuses an event, and returns false: its producer finds the code and the detail in the receipt.
static inline bool refuse(policy_refusal_t *refusal, text_t code, text_t name, text_t why) {
    refusal->code = copy(code);
    refusal->detail = (text_t){0};
    if (name.len > 0) add(&refusal->detail, TEXT("`")), add(&refusal->detail, name), add(&refusal->detail, TEXT("` "));
    add(&refusal->detail, why);
    return false;
}

// The members of an event's data. Refuses what is not an object.
static inline bool read_members(const policy_event_t *event, text_t *data, policy_refusal_t *refusal) {
    text_t none = {0}, code = TEXT("invalid_data");
    bool is_json = event->data.is_some && event->data.val.tag == POLICY_BODY_JSON;
    *data = is_json ? event->data.val.val.json : none;
    if (data->len > JSON_BYTES_MAX) return refuse(refusal, code, none, TEXT("the event's data has more than 16384 bytes"));
    text_t inside = *data;
    json_skip_space(&inside);
    if (inside.len == 0 || inside.ptr[0] != '{') return refuse(refusal, code, none, TEXT("the event's data should be a JSON object"));
    return true;
}

// The member of this name as it was written.
static inline bool read_member(text_t data, text_t name, text_t *value, policy_refusal_t *refusal) {
    return json_get(data, name, value) || refuse(refusal, TEXT("missing_field"), name, TEXT("is missing"));
}

// The id of this name, newly allocated.
static inline bool read_id(text_t data, text_t name, text_t *id, policy_refusal_t *refusal) {
    text_t value;
    if (!read_member(data, name, &value, refusal)) return false;
    return json_id(value, id) || refuse(refusal, TEXT("invalid_field"), name, TEXT("should be " ID));
}

// The name of a group, or a collapse key, that is made of an id, newly allocated: `prefixed(TEXT("pool:"), pool, TEXT("pool_id"), …)`.
static inline bool prefixed(text_t prefix, text_t id, text_t name, text_t *made, policy_refusal_t *refusal) {
    if (prefix.len + id.len > NAME_BYTES_MAX) {
        text_t why = copy(TEXT("has "));
        add_number(&why, id.len);
        add(&why, TEXT(" bytes: it should have at most "));
        add_number(&why, NAME_BYTES_MAX - prefix.len);
        refuse(refusal, TEXT("invalid_field"), name, why);
        free(why.ptr);
        return false;
    }
    *made = copy(prefix);
    add(made, id);
    return true;
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

// Adds a member, whose name and value are JSON already, to an object that is being written: begin with an empty text, end with `json_end`.
static inline void json_add_raw(text_t *object, text_t name, text_t value) {
    add(object, object->len == 0 ? TEXT("{") : TEXT(","));
    add(object, name);
    add(object, TEXT(":"));
    add(object, value);
}

// Adds a member, whose value is JSON already.
static inline void json_add(text_t *object, text_t name, text_t value) {
    text_t json = {0};
    json_add_text(&json, name);
    json_add_raw(object, json, value);
    free(json.ptr);
}

static inline void json_end(text_t *object) {
    add(object, object->len == 0 ? TEXT("{}") : TEXT("}"));
}
