// Tells a customer that an order was shipped.

#include "kit.h"

// A setting, in JSON.
static text_t text = TEXT("\"Your order is on its way.\"");

void exports_plugin_describe(exports_plugin_description_t *description) {
    description->name = copy(TEXT("template"));
    description->version = copy(TEXT("0.1.0"));
    description->events = list_of(TEXT("order.shipped"));
}

// False, with a reason, refuses the plugin when it is loaded.
bool exports_plugin_configure(policy_string_t *settings, policy_string_t *reason) {
    text_t rest = *settings;
    for (text_t name, value; json_next(&rest, &name, &value);) {
        if (!json_says(name, TEXT("text"))) {
            *reason = copy(TEXT("unknown setting "));
            add(reason, name);
            return false;
        }
        if (value.ptr[0] != '"') {
            *reason = copy(TEXT("`text` should be a string"));
            return false;
        }
        text = copy(value);
    }
    return true;
}

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
    json_add(&message, TEXT("text"), text);
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
