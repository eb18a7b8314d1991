// Greets clients, and answers a `ping` with a `pong`.

#include "kit.h"

// It speaks with clients and routes no event.
void exports_plugin_describe(exports_plugin_description_t *description) {
    description->name = copy(TEXT("template"));
    description->version = copy(TEXT("0.1.0"));
    description->events = (policy_list_string_t){0};
}

// False, with a reason, refuses the plugin when it is loaded.
bool exports_plugin_configure(policy_string_t *settings, policy_string_t *reason) {
    text_t name, value;
    if (!json_next(settings, &name, &value)) return true;
    *reason = copy(TEXT("unknown setting "));
    add(reason, name);
    return false;
}

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
