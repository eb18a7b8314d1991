// Gives readers who ask for `format=text` the text of a message, without the JSON around it.

#include "kit.h"

void exports_plugin_describe(exports_plugin_description_t *description) {
    description->name = copy(TEXT("template"));
    description->version = copy(TEXT("0.1.0"));
    description->events = list_of(TEXT("*"));
}

// False, with a reason, refuses the plugin when it is loaded.
bool exports_plugin_configure(policy_string_t *settings, policy_string_t *reason) {
    text_t name, value;
    if (!json_next(settings, &name, &value)) return true;
    *reason = copy(TEXT("unknown setting "));
    add(reason, name);
    return false;
}

void exports_formatting_vary(policy_list_string_t *attributes) {
    *attributes = list_of(TEXT("format"));
}

static bool wants_text(const policy_attributes_t *reader) {
    for (size_t at = 0; at < reader->len; at++) {
        if (same(reader->ptr[at].f0, TEXT("format"))) return same(reader->ptr[at].f1, TEXT("text"));
    }
    return false;
}

// An empty option would drop the message for these readers.
bool exports_formatting_format(exports_formatting_message_t *message, policy_attributes_t *reader,
                               exports_formatting_option_body_t *shaped, policy_refusal_t *refusal) {
    (void)refusal;
    text_t value, text;
    bool is_json = message->body.tag == POLICY_BODY_JSON;
    if (is_json && wants_text(reader) && json_get(message->body.val.json, TEXT("text"), &value) && json_text(value, &text)) {
        *shaped = (exports_formatting_option_body_t){.is_some = true, .val = {.tag = POLICY_BODY_TEXT, .val.text = text}};
    } else {
        // Handed on as it is: the message no longer has it to free.
        *shaped = (exports_formatting_option_body_t){.is_some = true, .val = message->body};
        message->body = (policy_body_t){0};
    }
    exports_formatting_message_free(message);
    policy_attributes_free(reader);
    return true;
}
