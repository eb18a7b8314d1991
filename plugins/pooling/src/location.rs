//! Whether a car has moved.

/// Degrees north and east.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Position {
    pub lat: f64,
    pub lon: f64,
}

impl Position {
    /// The great-circle distance by the haversine formula, which is exact enough (0.5 %) and steady for short ways.
    pub fn metres_to(self, other: Position) -> f64 {
        const EARTH_RADIUS_METRES: f64 = 6_371_000.0;
        let half_lat = (other.lat - self.lat).to_radians() / 2.0;
        let half_lon = (other.lon - self.lon).to_radians() / 2.0;
        let haversine = half_lat.sin().powi(2) + self.lat.to_radians().cos() * other.lat.to_radians().cos() * half_lon.sin().powi(2);
        // Rounding can lift antipodes past 1, where the arc sine is not a number.
        2.0 * EARTH_RADIUS_METRES * haversine.min(1.0).sqrt().asin()
    }

    pub fn to_bytes(self) -> Vec<u8> {
        [self.lat.to_le_bytes(), self.lon.to_le_bytes()].concat()
    }

    /// `None` for what `to_bytes` did not write, an older version of this plugin perhaps.
    pub fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let (lat, lon) = bytes.split_first_chunk()?;
        Some(Position { lat: f64::from_le_bytes(*lat), lon: f64::from_le_bytes(lon.try_into().ok()?) })
    }
}

/// The first position of a car always is.
pub fn is_worth_sending(last: Option<Position>, now: Position, min_metres: f64) -> bool {
    last.is_none_or(|last| last.metres_to(now) >= min_metres)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: Position = Position { lat: 52.5200, lon: 13.4050 };
    const VIENNA: Position = Position { lat: 48.2082, lon: 16.3738 };

    #[test]
    fn distances_are_those_of_the_globe() {
        assert!((BERLIN.metres_to(VIENNA) - 523_500.0).abs() < 1_500.0, "{}", BERLIN.metres_to(VIENNA));
        let (east, west) = (Position { lat: 0.0, lon: 179.9999 }, Position { lat: 0.0, lon: -179.9999 });
        assert!((east.metres_to(west) - 22.2).abs() < 0.1, "the date line is no distance: {}", east.metres_to(west));
        let (north, south) = (Position { lat: 90.0, lon: 0.0 }, Position { lat: -90.0, lon: 77.0 });
        assert!((north.metres_to(south) - 20_015_086.0).abs() < 1_000.0);
        assert_eq!(BERLIN.metres_to(BERLIN), 0.0);
    }

    #[test]
    fn a_car_must_move_to_be_sent_again() {
        let near = Position { lat: BERLIN.lat + 0.00005, ..BERLIN };
        let far = Position { lat: BERLIN.lat + 0.00015, ..BERLIN };
        assert!(is_worth_sending(None, BERLIN, 10.0));
        assert!(!is_worth_sending(Some(BERLIN), near, 10.0));
        assert!(is_worth_sending(Some(BERLIN), far, 10.0));
        assert!(is_worth_sending(Some(BERLIN), BERLIN, 0.0));
    }

    #[test]
    fn a_position_survives_being_stored() {
        assert_eq!(Position::from_bytes(&VIENNA.to_bytes()), Some(VIENNA));
        assert_eq!(Position::from_bytes(b"48.2,16.3"), None);
        assert_eq!(Position::from_bytes(b""), None);
    }
}
