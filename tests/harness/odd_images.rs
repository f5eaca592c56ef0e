//! Malformed and oversized images, built byte by byte.

/// A black PNG of any size at one bit per pixel; it takes a few hundred bytes per million pixels.
pub fn png_bomb(side_px: u32) -> Vec<u8> {
    let row_bytes = side_px.div_ceil(8) as usize + 1;
    let mut header = [side_px.to_be_bytes(), side_px.to_be_bytes()].concat();
    header.extend([1, 0, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut bytes, b"IHDR", &header);
    chunk(&mut bytes, b"IDAT", &zlib_zeros(row_bytes * side_px as usize));
    chunk(&mut bytes, b"IEND", &[]);
    bytes
}

/// Rewrites a JPEG's frame header to claim another size.
pub fn jpeg_saying(jpeg: &[u8], width_px: u16, height_px: u16) -> Vec<u8> {
    let mut bytes = jpeg.to_vec();
    // A frame header: FF C0..C2, two bytes of length, one byte of precision, then height and width.
    let frame = bytes.windows(2).position(|pair| pair[0] == 0xff && (0xc0..=0xc2).contains(&pair[1]));
    if let Some(size) = frame.and_then(|at| bytes.get_mut(at + 5..at + 9)) {
        size.copy_from_slice(&[height_px.to_be_bytes(), width_px.to_be_bytes()].concat());
    }
    bytes
}

/// A GIF of two frames, one pixel each.
pub fn animated_gif() -> Vec<u8> {
    let mut bytes = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff".to_vec();
    for _ in 0..2 {
        bytes.extend(b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00");
    }
    bytes.push(b';');
    bytes
}

fn chunk(bytes: &mut Vec<u8>, kind: &[u8; 4], content: &[u8]) {
    let body = [kind.as_slice(), content].concat();
    bytes.extend((content.len() as u32).to_be_bytes());
    bytes.extend(&body);
    bytes.extend(crc32(&body).to_be_bytes());
}

/// A zlib stream of `count` zeros: one literal, then copies of 258 bytes at 13 bits each.
fn zlib_zeros(count: usize) -> Vec<u8> {
    let mut bits = BitWriter::default();
    bits.push(0b011, 3);
    bits.push_code(0b0011_0000, 8);
    let (copies, rest) = ((count - 1) / 258, (count - 1) % 258);
    for _ in 0..copies {
        bits.push_code(0b1100_0101, 8);
        bits.push_code(0, 5);
    }
    for _ in 0..rest {
        bits.push_code(0b0011_0000, 8);
    }
    bits.push_code(0, 7);
    let mut bytes = vec![0x78, 0x01];
    bytes.extend(bits.finish());
    // Adler-32 of zeros: the first sum stays 1, the second is the count.
    bytes.extend(((count % 65_521) as u32).to_be_bytes().iter().skip(2));
    bytes.extend([0, 1]);
    bytes
}

#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    last: u64,
    held: u32,
}

impl BitWriter {
    /// Writes the lowest bit first, as deflate packs everything but codes.
    fn push(&mut self, value: u64, bits: u32) {
        self.last |= value << self.held;
        self.held += bits;
        while self.held >= 8 {
            self.bytes.push(self.last as u8);
            self.last >>= 8;
            self.held -= 8;
        }
    }

    /// Writes the highest bit first, as deflate packs codes.
    fn push_code(&mut self, code: u64, bits: u32) {
        self.push(code.reverse_bits() >> (64 - bits), bits);
    }

    fn finish(mut self) -> Vec<u8> {
        self.push(0, 7);
        self.bytes
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1)))
    })
}
