// [routing]
// Tells a customer that an order was shipped.
// [formatting]
// Gives readers who ask for `format=text` the text of a message, without the JSON around it.
// [sessions]
// Greets clients, and answers a `ping` with a `pong`.
// [end]

#include "kit.h"

// [routing]
// A setting, in JSON.
static text_t wording = TEXT("\"Your order is on its way.\"");

// [end]
void exports_plugin_describe(exports_plugin_description_t *description) {
    description->name = copy(TEXT("template"));
    description->version = copy(TEXT("0.1.0"));
    description->events = LIST_OF("order.shipped", "signalpost.direct");
}

// False, with a reason, refuses the plugin when it is loaded.
bool exports_plugin_configure(policy_string_t *settings, policy_string_t *reason) {
    text_t rest = *settings, name, value;
    while (json_next(&rest, &name, &value)) {
        // [routing]
        if (json_says(name, TEXT("text")) && value.ptr[0] == '"') {
            wording = copy(value);
            continue;
        }
        if (json_says(name, TEXT("text"))) {
            *reason = copy(TEXT("`text` should be a string"));
            return false;
        }
        // [end]
        *reason = copy(TEXT("unknown setting "));
        add(reason, name);
        return false;
    }
    return true;
}

// [routing]
static policy_list_delivery_t tell(text_t user, text_t message) {
    policy_delivery_t delivery = {
        .to = {.tag = POLICY_RECIPIENTS_USER, .val.user = user},
        .message = {.is_some = true, .val = {.tag = POLICY_BODY_JSON, .val.json = message}},
        .priority = POLICY_PRIORITY_NORMAL,
    };
    policy_list_delivery_t list = {need(NULL, sizeof delivery), 1};
    list.ptr[0] = delivery;
    return list;
}

// False, with a code and a detail, refuses the event.
static bool route(const policy_event_t *event, policy_decision_t *decision, policy_refusal_t *refusal) {
    text_t data, order, total, order_id = {0}, user = {0}, message = {0};
    if (!read_members(event, &data, refusal) || !read_id(data, TEXT("user_id"), &user, refusal)) return false;
    if (!read_id(data, TEXT("order_id"), &order_id, refusal)) {
        free(user.ptr);
        return false;
    }
    free(order_id.ptr);
    json_get(data, TEXT("order_id"), &order);
    json_add(&message, TEXT("type"), TEXT("\"order_shipped\""));
    json_add(&message, TEXT("order_id"), order);
    json_add(&message, TEXT("text"), wording);
    if (json_get(data, TEXT("total"), &total) && !same(total, TEXT("null"))) json_add(&message, TEXT("total"), total);
    json_end(&message);
    decision->deliveries = tell(user, message);
    return true;
}

bool exports_routing_route(policy_event_t *event, policy_decision_t *decision, policy_refusal_t *refusal) {
    *decision = (policy_decision_t){0};
    *refusal = (policy_refusal_t){0};
    bool routed = route(event, decision, refusal);
    policy_event_free(event);
    return routed;
}

// [formatting]
void exports_formatting_vary(policy_list_string_t *attributes) {
    *attributes = LIST_OF("format");
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

// [sessions]
static exports_sessions_response_t reply(text_t message) {
    exports_sessions_response_t response = {.replies = {need(NULL, sizeof(policy_body_t)), 1}};
    response.replies.ptr[0] = (policy_body_t){.tag = POLICY_BODY_JSON, .val.json = message};
    return response;
}

bool exports_sessions_opened(exports_sessions_session_t *session, exports_sessions_response_t *response, policy_refusal_t *refusal) {
    (void)refusal;
    text_t user = {0}, message = {0};
    json_add_text(&user, session->user);
    json_add(&message, TEXT("type"), TEXT("\"welcome\""));
    json_add(&message, TEXT("user"), user);
    json_end(&message);
    free(user.ptr);
    *response = reply(message);
    exports_sessions_session_free(session);
    return true;
}

// An empty option: what is no ping is left to other policies.
bool exports_sessions_received(exports_sessions_session_t *session, policy_body_t *message,
                               exports_sessions_option_response_t *response, policy_refusal_t *refusal) {
    (void)refusal;
    text_t type;
    bool is_ping = message->tag == POLICY_BODY_JSON && json_get(message->val.json, TEXT("type"), &type) && json_says(type, TEXT("ping"));
    *response = (exports_sessions_option_response_t){.is_some = is_ping};
    if (is_ping) response->val = reply(copy(TEXT("{\"type\":\"pong\"}")));
    exports_sessions_session_free(session);
    policy_body_free(message);
    return true;
}

bool exports_sessions_closed(exports_sessions_session_t *session, uint16_t code, exports_sessions_response_t *response,
                             policy_refusal_t *refusal) {
    (void)code, (void)refusal;
    *response = (exports_sessions_response_t){0};
    exports_sessions_session_free(session);
    return true;
}
// [end]
