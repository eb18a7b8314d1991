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
            add(reason, TEXT("unknown setting "));
            add(reason, name);
            return false;
        }
        text = copy(value);
    }
    return true;
}

// False, with a code and a detail, refuses the event: its producer finds both in the receipt.
static bool required(text_t data, const char *name, text_t *value, policy_refusal_t *refusal) {
    text_t wanted = {(uint8_t *)name, strlen(name)};
    if (json_get(data, wanted, value)) return true;
    refusal->code = copy(TEXT("missing_field"));
    add(&refusal->detail, TEXT("`"));
    add(&refusal->detail, wanted);
    add(&refusal->detail, TEXT("` is missing"));
    return false;
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

static bool route(text_t data, policy_decision_t *decision, policy_refusal_t *refusal) {
    text_t order, customer, user, message = {0};
    if (!required(data, "order_id", &order, refusal)) return false;
    if (!required(data, "user_id", &customer, refusal)) return false;
    if (!json_id(customer, &user)) {
        refusal->code = copy(TEXT("invalid_field"));
        refusal->detail = copy(TEXT("`user_id` should be a number or a text"));
        return false;
    }
    json_add(&message, TEXT("type"), TEXT("\"order_shipped\""));
    json_add(&message, TEXT("order_id"), order);
    json_add(&message, TEXT("text"), text);
    json_end(&message);
    decision->deliveries = tell(user, message);
    return true;
}

bool exports_routing_route(policy_event_t *event, policy_decision_t *decision, policy_refusal_t *refusal) {
    *decision = (policy_decision_t){0};
    *refusal = (policy_refusal_t){0};
    bool has_data = event->data.is_some && event->data.val.tag == POLICY_BODY_JSON;
    bool routed = route(has_data ? event->data.val.val.json : TEXT("{}"), decision, refusal);
    policy_event_free(event);
    return routed;
}
