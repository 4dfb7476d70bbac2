package main

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math"
	"strings"
)

const (
	sqsHandleVersion = 1                           // the first byte of receipt handles
	maxReceivedAt    = 253_402_300_800_000_000 - 1 // microseconds: the last of the year 9999
)

// A receipt handle is the base64 of a version, the numbers of the receipt, the id of the
// message, and a checksum of these.

// sqsHandleOf returns the receipt handle of a received message.
func sqsHandleOf(m *message) string {
	return sqsHandle(m.ID, m.receipt())
}

func sqsHandle(id string, v receipt) string {
	b := []byte{sqsHandleVersion}
	b = binary.AppendVarint(b, v.queueKey)
	b = binary.AppendVarint(b, v.seq)
	b = binary.AppendVarint(b, int64(v.attempts))
	b = binary.AppendVarint(b, v.receivedAt)
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
	var numbers [4]int64
	for i := range numbers {
		n, size := binary.Varint(b)
		if size <= 0 {
			return "", v, false
		}
		numbers[i], b = n, b[size:]
	}
	if len(b) != 16 || numbers[2] < 1 || numbers[2] > math.MaxInt32 || numbers[3] < 0 || numbers[3] > maxReceivedAt {
		return "", v, false
	}
	return formatID([16]byte(b)), receipt{queueKey: numbers[0], seq: numbers[1], attempts: int(numbers[2]), receivedAt: numbers[3]}, true
}
