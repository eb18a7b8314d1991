// Tells a rider and a driver that they share a ride, and makes them a group.

#include "kit.h"

void exports_plugin_describe(exports_plugin_description_t *description) {
    description->name = copy(TEXT("match"));
    description->version = copy(TEXT("0.1.0"));
    description->events = LIST_OF("pooling.match.found");
}

bool exports_plugin_configure(policy_string_t *settings, policy_string_t *reason) {
    text_t name, value;
    if (!json_next(settings, &name, &value)) return true;
    *reason = copy(TEXT("unknown setting "));
    add(reason, name);
    return false;
}

static text_t message_of(text_t data) {
    text_t request, message = {0};
    json_get(data, TEXT("request_id"), &request);
    json_add(&message, TEXT("type"), TEXT("\"pooling_match\""));
    json_add(&message, TEXT("request_id"), request);
    json_add(&message, TEXT("status"), TEXT("\"matched\""));
    json_add(&message, TEXT("details"), TEXT("\"You have been matched for a pooling request!\""));
    for (text_t name, value; json_next(&data, &name, &value);) {
        // What is there already wins.
        bool is_own = json_says(name, TEXT("type")) || json_says(name, TEXT("request_id")) || json_says(name, TEXT("status")) ||
                      json_says(name, TEXT("details"));
        if (!is_own) json_add_raw(&message, name, value);
    }
    json_end(&message);
    return message;
}

static bool route(const policy_event_t *event, policy_decision_t *decision, policy_refusal_t *refusal) {
    text_t data, request = {0}, rider = {0}, driver = {0}, pool = {0}, group = {0};
    bool complete = read_members(event, &data, refusal) && read_id(data, TEXT("request_id"), &request, refusal) &&
                    read_id(data, TEXT("rider_id"), &rider, refusal) && read_id(data, TEXT("driver_id"), &driver, refusal) &&
                    read_id(data, TEXT("pool_id"), &pool, refusal) &&
                    prefixed(TEXT("pool:"), pool, TEXT("pool_id"), &group, refusal);
    if (complete) {
        policy_list_membership_t joins = {need(NULL, 2 * sizeof(policy_membership_t)), 2};
        joins.ptr[0] = (policy_membership_t){.group = copy(group), .user = copy(rider)};
        joins.ptr[1] = (policy_membership_t){.group = group, .user = copy(driver)};
        policy_list_string_t both = {need(NULL, 2 * sizeof(text_t)), 2};
        both.ptr[0] = copy(rider);
        both.ptr[1] = copy(driver);
        policy_list_delivery_t deliveries = {need(NULL, sizeof(policy_delivery_t)), 1};
        deliveries.ptr[0] = (policy_delivery_t){
            .to = {.tag = POLICY_RECIPIENTS_USERS, .val.users = both},
            .message = {.is_some = true, .val = {.tag = POLICY_BODY_JSON, .val.json = message_of(data)}},
            .priority = POLICY_PRIORITY_HIGH,
        };
        *decision = (policy_decision_t){.joins = joins, .deliveries = deliveries};
    }
    free(request.ptr), free(rider.ptr), free(driver.ptr), free(pool.ptr);
    return complete;
}

bool exports_routing_route(policy_event_t *event, policy_decision_t *decision, policy_refusal_t *refusal) {
    bool routed = route(event, decision, refusal);
    policy_event_free(event);
    return routed;
}
