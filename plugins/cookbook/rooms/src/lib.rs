//! Rooms: users join and leave, what is said goes to all others, and a room that is closed is told so.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Fields, Object, Policy, Refusal, Routing, export, tell, to};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rooms {}

impl Policy for Rooms {
    const EVENTS: &'static [&'static str] = &["room.joined", "room.left", "room.said", "room.closed"];
}

impl Routing for Rooms {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let data = event.fields()?;
        let room = data.id("room_id")?.prefixed("room:", "room_id")?;
        let user = || data.id("user_id");
        let others = |message_type| Ok::<_, Refusal>(tell(to::group(&room), message(message_type, &data)).except([user()?]));
        Ok(match event.type_.as_str() {
            "room.joined" => Decision::from(others("joined")?).join(&room, user()?),
            "room.left" => Decision::from(others("left")?).leave(&room, user()?),
            "room.said" => others("said")?.into(),
            _ => Decision::from(tell(to::group(&room), message("closed", &data))).end_group(&room),
        })
    }
}

fn message<'a>(message_type: &str, data: &'a Fields) -> Object<'a> {
    Object::new(message_type).rest(data, &[])
}

export!(Rooms: routing);
