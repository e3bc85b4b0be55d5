//! The colours of the charts, on a light ground and on a dark one. Pure.
//!
//! Invariant: an engine has the same colour everywhere, and no colour says what no word says.

use plotters::style::RGBColor;

use crate::scenario::Engine;

/// A colour by what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// io_uring.
    Uring,
    /// epoll, or the second of two.
    Epoll,
    /// tokio-uring, or the third.
    TokioUring,
    /// A server of others, or the fourth.
    Peer,
    /// No engine: the floor, a bare socket.
    Bare,
    /// Text and what stands on a chart.
    Text,
    /// What lies behind it.
    Grid,
}

impl Ink {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Uring,
        Self::Epoll,
        Self::TokioUring,
        Self::Peer,
        Self::Bare,
        Self::Text,
        Self::Grid,
    ];

    /// That of an engine.
    pub fn of(engine: Engine) -> Self {
        match engine {
            Engine::Uring => Self::Uring,
            Engine::Epoll => Self::Epoll,
            Engine::TokioUring => Self::TokioUring,
            Engine::Peer(_) => Self::Peer,
        }
    }

    /// As a chart has it, on a light ground.
    pub fn light(self) -> String {
        let RGBColor(red, green, blue) = self.rgb();
        format!("#{red:02X}{green:02X}{blue:02X}")
    }

    /// What it is to be on a dark one.
    pub fn dark(self) -> &'static str {
        match self {
            Self::Uring => "#58A6FF",
            Self::Epoll => "#F0883E",
            Self::TokioUring => "#BC8CFF",
            Self::Peer => "#3FB950",
            Self::Bare => "#8B949E",
            Self::Text => "#E6EDF3",
            Self::Grid => "#3D444D",
        }
    }

    /// As a chart is drawn with it.
    pub fn rgb(self) -> RGBColor {
        match self {
            Self::Uring => RGBColor(0x09, 0x69, 0xDA),
            Self::Epoll => RGBColor(0xBC, 0x4C, 0x00),
            Self::TokioUring => RGBColor(0x82, 0x50, 0xDF),
            Self::Peer => RGBColor(0x1A, 0x7F, 0x37),
            Self::Bare => RGBColor(0x8C, 0x95, 0x9F),
            Self::Text => RGBColor(0x1F, 0x23, 0x28),
            Self::Grid => RGBColor(0xD1, 0xD9, 0xE0),
        }
    }
}
