//! What keys and data of the firewall's sets are made of, as the kernel and as nft write them.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Length of an interface's name in a key, its end included.
const NAME: usize = 16;

/// One part of a key or of its data.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    /// An interface.
    Name(String),
    /// A MAC address.
    Mac([u8; 6]),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
    /// An IPv6 address in a field that nft takes for a number.
    Number(Ipv6Addr),
    /// A transport's number in IP.
    Transport(u8),
    /// A port.
    Port(u16),
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Name(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(NAME, 0);
                bytes
            }
            Self::Mac(mac) => mac.to_vec(),
            Self::V4(address) => address.octets().to_vec(),
            Self::V6(address) | Self::Number(address) => address.octets().to_vec(),
            Self::Transport(number) => vec![*number],
            Self::Port(port) => port.to_be_bytes().to_vec(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(out, "\"{name}\""),
            Self::Mac([a, b, c, d, e, f]) => write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            Self::V4(address) => address.fmt(out),
            Self::V6(address) => address.fmt(out),
            Self::Number(address) => write!(out, "{:#034x}", address.to_bits()),
            Self::Transport(number) => number.fmt(out),
            Self::Port(port) => port.fmt(out),
        }
    }
}

/// Values as the kernel has them: each part of several is filled up to four bytes.
pub(super) fn bytes(values: &[Value]) -> Vec<u8> {
    let mut all = Vec::with_capacity(40);
    for value in values {
        all.extend(value.bytes());
        if values.len() > 1 {
            all.resize(all.len().next_multiple_of(4), 0);
        }
    }
    all
}

/// Values as nft has them.
pub(super) fn text(values: &[Value]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" . ")
}

/// The address of its link that an interface with this MAC has from the start (RFC 4291, appendix A).
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_protocol::network::parse_mac;

    #[test]
    fn parts_of_a_key_are_filled_up_and_a_single_one_is_not() {
        let mac = Value::Mac([2, 0, 0, 0, 0, 1]);
        assert_eq!(bytes(std::slice::from_ref(&mac)), [2, 0, 0, 0, 0, 1]);
        let key = [Value::Name("p1".into()), mac];
        assert_eq!(bytes(&key), *b"p1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\x01\0\0");
        assert_eq!(text(&key), "\"p1\" . 02:00:00:00:00:01");
        let port = [Value::Transport(17), Value::Port(0x1234)];
        assert_eq!(bytes(&port), [17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(text(&port), "17 . 4660");
    }

    #[test]
    fn addresses_of_mac_and_link() {
        let mac = parse_mac("02:42:ac:11:00:0f").unwrap();
        assert_eq!(mac, [2, 0x42, 0xac, 0x11, 0, 0xf]);
        assert_eq!(link_local(mac), "fe80::42:acff:fe11:f".parse::<Ipv6Addr>().unwrap());
        assert_eq!(Value::Number(link_local(mac)).to_string(), "0xfe800000000000000042acfffe11000f");
        for wrong in ["", "02:42:ac:11:00", "02:42:ac:11:00:0f:01", "2:42:ac:11:00:0f", "02:42:ac:11:00:xx"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
