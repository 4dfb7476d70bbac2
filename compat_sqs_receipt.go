package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
)

// sqsHandleVersion is the first byte of receipt handles.
const sqsHandleVersion = 1

// A receipt handle is the base64 of a version, the key of the queue, seq, the number of
// attempts, the id of the message, and a checksum of these. It stays the same for as long as
// one delivery lasts: only a delivery and a move change the numbers.

// sqsHandleOf returns the receipt handle of a received message.
func sqsHandleOf(m *message) string {
	return sqsHandle(m.ID, m.receipt())
}

func sqsHandle(id string, v receipt) string {
	b := []byte{sqsHandleVersion}
	b = binary.AppendVarint(b, v.queueKey)
	b = binary.AppendVarint(b, v.seq)
	b = binary.AppendVarint(b, int64(v.attempts))
	b, _ = hex.AppendDecode(b, []byte(strings.ReplaceAll(id, "-", "")))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// readSQSHandle returns the id of the message and the receipt in a receipt handle, and false
// if it is not one.
func readSQSHandle(handle string) (id string, v receipt, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(handle)
	if err != nil || len(b) < 5 || b[0] != sqsHandleVersion {
		return "", v, false
	}
	b, sum := b[:len(b)-4], b[len(b)-4:]
	if binary.BigEndian.Uint32(sum) != crc32.ChecksumIEEE(b) {
		return "", v, false
	}
	b = b[1:]
	var numbers [3]int64
	for i := range numbers {
		n, size := binary.Varint(b)
		if size <= 0 {
			return "", v, false
		}
		numbers[i], b = n, b[size:]
	}
	if len(b) != 16 || numbers[2] < 1 {
		return "", v, false
	}
	return formatID([16]byte(b)), receipt{queueKey: numbers[0], seq: numbers[1], attempts: int(numbers[2])}, true
}
