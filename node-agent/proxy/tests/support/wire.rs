//! Packets as bytes, with every checksum summed up from scratch: the slow twin of what the programs do by differences.

use std::net::{IpAddr, SocketAddr};

pub(crate) const PASS: i32 = -1;
pub(crate) const DROP: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

const SEQUENCE: u32 = 0x0102_0304;
const ACKNOWLEDGEMENT: u32 = 0x0a0b_0c0d;

/// A TCP or UDP packet in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) window: u16,
    pub(crate) hop_limit: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) identification: u16,
    pub(crate) udp_checksum: bool,
    /// IPv6 extension headers: type and content without its first byte, a multiple of 8 less one long.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn packet(source: &str, destination: &str, protocol: u8, tcp_flags: u8) -> Packet {
    Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        tcp_flags,
        sequence: SEQUENCE,
        acknowledgement: ACKNOWLEDGEMENT,
        window: 0xffff,
        hop_limit: 64,
        dont_fragment: true,
        identification: 0x1234,
        udp_checksum: true,
        extensions: Vec::new(),
        payload: b"odd".to_vec(),
    }
}

impl Packet {
    /// From Ethernet on.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        ethernet(&self.ip_bytes())
    }

    /// From the IP header on.
    pub(crate) fn ip_bytes(&self) -> Vec<u8> {
        let fragment = if self.dont_fragment { 0x4000 } else { 0 };
        self.ip(&self.l4_bytes(), fragment, None)
    }

    /// The packet in two parts, the first of which has `first` bytes of what follows the IP header.
    pub(crate) fn parts(&self, first: usize) -> [Vec<u8>; 2] {
        let l4 = self.l4_bytes();
        let (head, tail) = l4.split_at(first);
        let offset = (first / 8) as u16;
        let (id_v6, id) = (u32::from(self.identification), self.identification);
        if self.source.is_ipv4() {
            assert_ne!(id, 0);
            return [ethernet(&self.ip(head, 0x2000, None)), ethernet(&self.ip(tail, offset, None))];
        }
        [
            ethernet(&self.ip(head, 0, Some((1, id_v6)))),
            ethernet(&self.ip(tail, 0, Some((offset << 3, id_v6)))),
        ]
    }

    fn l4_bytes(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.source.port().to_be_bytes());
        l4.extend(self.destination.port().to_be_bytes());
        if self.protocol == TCP {
            l4.extend(self.sequence.to_be_bytes());
            l4.extend(self.acknowledgement.to_be_bytes());
            l4.extend([5 << 4, self.tcp_flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0; 4]);
        } else {
            l4.extend((8 + self.payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(&self.payload);
        let at = if self.protocol == TCP { 16 } else { 6 };
        let sum = l4_checksum(self.source.ip(), self.destination.ip(), self.protocol, &l4);
        if self.protocol == TCP || self.udp_checksum {
            l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        l4
    }

    fn ip(&self, l4: &[u8], fragment_v4: u16, fragment_v6: Option<(u16, u32)>) -> Vec<u8> {
        let mut chain: Vec<(u8, Vec<u8>)> = self.extensions.clone();
        if let Some((offset, id)) = fragment_v6 {
            let content = [&[0][..], &offset.to_be_bytes(), &id.to_be_bytes()].concat();
            chain.push((FRAGMENT, content));
        }
        let header = Header {
            source: self.source.ip(),
            destination: self.destination.ip(),
            protocol: self.protocol,
            hop_limit: self.hop_limit,
            identification: self.identification,
            fragment: fragment_v4,
        };
        let mut body = Vec::new();
        let types: Vec<u8> = chain.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
        for ((_, content), next) in chain.iter().zip(&types[1..]) {
            body.push(*next);
            body.extend(content);
        }
        body.extend(l4);
        Header { protocol: types[0], ..header }.with(&body)
    }
}

/// Fields of an IP header of either family.
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    pub(crate) identification: u16,
    /// Flags and offset, IPv4.
    pub(crate) fragment: u16,
}

impl Header {
    pub(crate) fn with(&self, body: &[u8]) -> Vec<u8> {
        let mut bytes;
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes = vec![0x45, 0];
                bytes.extend(((20 + body.len()) as u16).to_be_bytes());
                bytes.extend(self.identification.to_be_bytes());
                bytes.extend(self.fragment.to_be_bytes());
                bytes.extend([self.hop_limit, self.protocol, 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                let sum = checksum(&bytes);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes = vec![0x60, 0, 0, 0];
                bytes.extend((body.len() as u16).to_be_bytes());
                bytes.extend([self.protocol, self.hop_limit]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
            }
            _ => panic!("addresses of two families"),
        }
        bytes.extend(body);
        bytes
    }
}

/// An ICMP error from Ethernet on. `v4` and `v6` are type and code.
#[derive(Clone, Debug)]
pub(crate) struct IcmpError {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) v4: [u8; 2],
    pub(crate) v6: [u8; 2],
    pub(crate) rest: u32,
    pub(crate) hop_limit: u8,
    /// The packet that is quoted, from its IP header on.
    pub(crate) quoted: Vec<u8>,
}

impl IcmpError {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let is_v4 = self.source.is_ipv4();
        let mut message = Vec::from(if is_v4 { self.v4 } else { self.v6 });
        message.extend([0, 0]);
        message.extend(self.rest.to_be_bytes());
        message.extend(&self.quoted);
        let protocol = if is_v4 { ICMP } else { ICMPV6 };
        let sum = if is_v4 {
            checksum(&message)
        } else {
            l4_checksum(self.source, self.destination, ICMPV6, &message)
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let header = Header {
            source: self.source,
            destination: self.destination,
            protocol,
            hop_limit: self.hop_limit,
            identification: 0,
            fragment: 0x4000,
        };
        ethernet(&header.with(&message))
    }
}

/// The link-layer address is the one of the interface that BPF_PROG_TEST_RUN pretends.
fn ethernet(ip: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 2];
    bytes.extend(if ip[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    bytes.extend(ip);
    bytes
}

/// A packet that goes back by the link that it came by.
pub(crate) fn turned(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[..12].rotate_left(6);
    bytes
}

fn l4_checksum(source: IpAddr, destination: IpAddr, protocol: u8, l4: &[u8]) -> u16 {
    let mut covered = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => covered.extend(address.octets()),
            IpAddr::V6(address) => covered.extend(address.octets()),
        }
    }
    covered.extend([0, protocol]);
    covered.extend((l4.len() as u16).to_be_bytes());
    covered.extend(l4);
    match (checksum(&covered), protocol) {
        (0, UDP) => 0xffff,
        (sum, _) => sum,
    }
}

/// RFC 1071, word by word.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The source port of a packet without options or extension headers, from Ethernet on.
pub(crate) fn source_port(bytes: &[u8]) -> u16 {
    let l4 = if bytes[14] >> 4 == 4 { 14 + 20 } else { 14 + 40 };
    u16::from_be_bytes([bytes[l4], bytes[l4 + 1]])
}
