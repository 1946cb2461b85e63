#!/usr/bin/env python3
"""Restores backups from a Varve repository that lies in a directory, without Varve.

It was written from docs/format-repository.md alone, and is what docs/recovery.md explains. It needs Python 3.9,
the package cryptography (Debian: python3-cryptography) and the program zstd; with the module blake3 it is faster where
a repository is not encrypted.

    recover.py REPOSITORY list
    recover.py REPOSITORY restore BACKUP FILE
    recover.py --password-file F | --identity-file F ...

It reads, and changes nothing. It takes whatever copy of an object is sound, but mends none: `varve repo check --sealed` does
that without any key. A raw disk image is written, holes stay holes.
"""

import argparse
import base64
import hashlib
import hmac
import os
import re
import struct
import subprocess
import sys
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

try:
    import blake3 as fast_blake3
except ImportError:
    fast_blake3 = None

BLOCK = 4096
MAX_OBJECT = 1 << 27
CONFIG, RING, SLOT, PACK, NODES, INDEX, CANDIDATE, RECORD = range(1, 9)


class Damaged(Exception):
    """What is there is not what was stored."""


# --- BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) ------------------------------------------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED_HASH, DERIVE_CONTEXT, DERIVE_MATERIAL = 1, 2, 4, 8, 16, 32, 64
MASK = 0xFFFFFFFF


def compress(value, words, counter, length, flags):
    s = list(value) + [*IV[:4], counter & MASK, counter >> 32, length, flags]

    def mix(a, b, c, d, x, y):
        s[a] = s[a] + s[b] + x & MASK
        s[d] ^= s[a]
        s[d] = (s[d] >> 16 | s[d] << 16) & MASK
        s[c] = s[c] + s[d] & MASK
        s[b] ^= s[c]
        s[b] = (s[b] >> 12 | s[b] << 20) & MASK
        s[a] = s[a] + s[b] + y & MASK
        s[d] ^= s[a]
        s[d] = (s[d] >> 8 | s[d] << 24) & MASK
        s[c] = s[c] + s[d] & MASK
        s[b] ^= s[c]
        s[b] = (s[b] >> 7 | s[b] << 25) & MASK

    m = words
    for _ in range(7):
        mix(0, 4, 8, 12, m[0], m[1])
        mix(1, 5, 9, 13, m[2], m[3])
        mix(2, 6, 10, 14, m[4], m[5])
        mix(3, 7, 11, 15, m[6], m[7])
        mix(0, 5, 10, 15, m[8], m[9])
        mix(1, 6, 11, 12, m[10], m[11])
        mix(2, 7, 8, 13, m[12], m[13])
        mix(3, 4, 9, 14, m[14], m[15])
        m = [m[i] for i in PERMUTATION]
    return [s[i] ^ s[i + 8] for i in range(8)]


def chunk_node(data, counter, key, flags):
    """All of a chunk but its last block; that is (value, words, counter, length, flags)."""
    value = key
    start = CHUNK_START
    blocks = max(1, (len(data) + 63) // 64)
    for i in range(blocks):
        block = data[64 * i:64 * i + 64]
        words = struct.unpack("<16I", block.ljust(64, b"\0"))
        last = CHUNK_END if i == blocks - 1 else 0
        node = (value, words, counter, len(block), flags | start | last)
        if last:
            return node
        value, start = compress(*node), 0


def subtree(data, counter, key, flags):
    if len(data) <= 1024:
        return chunk_node(data, counter, key, flags)
    left = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
    words = compress(*subtree(data[:left], counter, key, flags)) + compress(*subtree(data[left:], counter + left // 1024, key, flags))
    return (key, words, 0, 64, flags | PARENT)


def blake3_words(data, key, flags):
    value, words, counter, length, f = subtree(data, 0, key, flags)
    return struct.pack("<8I", *compress(value, words, counter, length, f | ROOT))


def blake3(data):
    return fast_blake3.blake3(data).digest() if fast_blake3 else blake3_words(data, IV, 0)


def keyed(key, data):
    if fast_blake3:
        return fast_blake3.blake3(data, key=key).digest()
    return blake3_words(data, struct.unpack("<8I", key), KEYED_HASH)


def derive_key(context, material):
    key = blake3_words(context.encode(), IV, DERIVE_CONTEXT)
    return blake3_words(material, struct.unpack("<8I", key), DERIVE_MATERIAL)


# --- CBOR (RFC 8949), as much as is used ------------------------------------------------------------------------

def cbor(data):
    value, end = cbor_item(data, 0, 0)
    if end != len(data):
        raise Damaged("something follows the CBOR")
    return value


def cbor_item(data, at, depth):
    if at >= len(data) or depth > 16:
        raise Damaged("CBOR is cut short, or too deep")
    major, n = data[at] >> 5, data[at] & 31
    at += 1
    if 24 <= n < 28:
        size = 1 << n - 24
        n, at = int.from_bytes(data[at:at + size], "big"), at + size
    elif n >= 28:
        raise Damaged("CBOR of indefinite length")
    if major == 0:
        return n, at
    if major == 1:
        return -1 - n, at
    if major in (2, 3):
        if at + n > len(data):
            raise Damaged("CBOR is cut short")
        raw = data[at:at + n]
        return (raw if major == 2 else raw.decode()), at + n
    if major == 4:
        out = []
        for _ in range(n):
            item, at = cbor_item(data, at, depth + 1)
            out.append(item)
        return out, at
    if major == 5:
        out = {}
        for _ in range(n):
            key, at = cbor_item(data, at, depth + 1)
            out[key], at = cbor_item(data, at, depth + 1)
        return out, at
    raise Damaged("CBOR of a type that is not used")


# --- age files (https://age-encryption.org/v1) --------------------------------------------------------------------

def hkdf(key, salt, info):
    return HKDF(SHA256(), 32, salt, info).derive(key)


def unpadded(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))


def bech32(text):
    """The bytes that an age key in bech32 stands for."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    _, _, data = text.lower().rpartition("1")
    bits = "".join(format(alphabet.index(c), "05b") for c in data[:-6])
    return bytes(int(bits[i:i + 8], 2) for i in range(0, len(bits) - 7, 8))


def age_open(armoured, file_key_of):
    """Content of an age file; file_key_of(stanza arguments, body) returns a file key, or None."""
    lines = armoured.strip().splitlines()
    data = base64.b64decode("".join(lines[1:-1]))
    end = data.index(b"\n--- ")
    header_end = data.index(b"\n", end + 1)
    head = data[:end + 1].decode().splitlines()
    if head[0] != "age-encryption.org/v1":
        raise Damaged("not an age file of version 1")
    stanzas, i = [], 1
    while i < len(head):
        arguments, body = head[i].split(" ")[1:], ""
        while True:
            i += 1
            body += head[i]
            if len(head[i]) < 64:
                break
        stanzas.append((arguments, unpadded(body)))
        i += 1
    for arguments, body in stanzas:
        file_key = file_key_of(arguments, body)
        if file_key is None:
            continue
        mac = hmac.new(hkdf(file_key, None, b"header"), data[:end + 4], hashlib.sha256).digest()
        if mac != unpadded(data[end + 5:header_end].decode()):
            raise Damaged("the header of an age file does not authenticate")
        payload = data[header_end + 1:]
        cipher = ChaCha20Poly1305(hkdf(file_key, payload[:16], b"payload"))
        sealed, out, counter = payload[16:], b"", 0
        while True:
            piece, sealed = sealed[:65552], sealed[65552:]
            out += cipher.decrypt(counter.to_bytes(11, "big") + (b"\0" if sealed else b"\1"), piece, None)
            counter += 1
            if not sealed:
                return out
    return None


def unwrap(key, body):
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), body, None)
    except InvalidTag:
        return None


def with_identity(secret):
    own = X25519PrivateKey.from_private_bytes(bech32(secret))
    public = own.public_key().public_bytes_raw()

    def file_key(arguments, body):
        if arguments[0] != "X25519":
            return None
        share = unpadded(arguments[1])
        shared = own.exchange(X25519PublicKey.from_public_bytes(share))
        return unwrap(hkdf(shared, share + public, b"age-encryption.org/v1/X25519"), body)
    return file_key


def with_passphrase(passphrase):
    def file_key(arguments, body):
        if arguments[0] != "scrypt":
            return None
        salt = b"age-encryption.org/v1/scrypt" + unpadded(arguments[1])
        key = hashlib.scrypt(passphrase, salt=salt, n=1 << int(arguments[2]), r=8, p=1, dklen=32)
        return unwrap(key, body)
    return file_key


def argon2id(passphrase, salt, passes, kib, lanes):
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
        return Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=kib).derive(passphrase)
    except ImportError:  # before version 44; the program of the reference implementation (Debian: argon2)
        out = subprocess.run(["argon2", salt.decode(), "-id", "-t", str(passes), "-k", str(kib), "-p", str(lanes), "-l", "32", "-r"],
                             input=passphrase, capture_output=True, check=True).stdout
        return bytes.fromhex(out.decode().strip())


# --- Objects: the envelope ------------------------------------------------------------------------------------------

class Header:
    def __init__(self, raw):
        if len(raw) < 128 or raw[:8] != b"VARVEOBJ" or crc32c(raw[:124]) != struct.unpack("<I", raw[124:128])[0]:
            raise Damaged("no header")
        (self.version, self.kind, self.cipher, self.generation) = struct.unpack("<HBBI", raw[8:16])
        if self.version > 1:
            raise Damaged(f"version {self.version} is newer than this program")
        self.repository, self.name_hash, self.salt = raw[16:32], raw[32:48], raw[48:80]
        (self.payload_bytes, self.shard_bytes, self.parity, _, self.directory_bytes) = struct.unpack("<QIHHI", raw[96:116])
        self.associated = raw[8:96]
        data = max(1, -(-self.payload_bytes // self.shard_bytes))
        groups = -(-data // 100)
        parity = 0 if self.parity == 0 else max(2, -(-(-(-data // groups) * self.parity) // 100))
        self.table = 4 * (data + groups * parity) + 4
        self.payload_at = 128 + self.table
        self.object_bytes = self.payload_at + self.payload_bytes + groups * parity * self.shard_bytes + self.table + 128


CRC = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
    CRC.append(n)


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ CRC[(value ^ byte) & 255]
    return value ^ 0xFFFFFFFF


def stem(name):
    name = re.sub(r"-[1-9][0-9]*$", "", name)
    if name.startswith(("config", "keys/")):
        name = re.sub(r"\.[012]$", "", name)
    return name


class Repository:
    def __init__(self, directory, passphrase=None, identities=()):
        self.directory = directory
        self.keys, self.cipher, self.uuid = {}, 0, None
        self.directories, self.everywhere = {}, None
        config = next(self.objects("config", CONFIG, [f"config.{i}" for i in range(3)]))
        tag, raw = config[:32], config[32:]
        config = cbor(raw)
        if config[1] > 1 or config[2]:
            raise SystemExit("this repository is of a format that is newer than this program")
        self.uuid, self.blocks = config[5], config[7] // BLOCK
        if config[11] == 0:
            for name in ("generation", "identity", "hash"):
                key = derive_key(f"varve repository v1 {name} key without encryption", self.uuid)
                self.keys[0 if name == "generation" else name] = key
        else:
            self.cipher = 1
            self.open_ring(passphrase, identities)
        if keyed(derive_key("varve repository v1 config", self.keys["identity"]), raw) != tag:
            raise Damaged("the configuration was not written by somebody who has the keys")

    # Reading objects

    def names(self, folder):
        path = os.path.join(self.directory, folder)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def objects(self, name, kind, names=None):
        """Payloads of the sound copies of an object: as it was put, and as repairs have put it again."""
        for header, payload in self.sound(name, kind, names):
            yield payload

    def sound(self, name, kind, names=None):
        folder = os.path.dirname(name)
        if names is None:
            base = os.path.basename(name)
            names = [n for n in self.names(folder) if re.fullmatch(re.escape(base) + r"(-[1-9][0-9]*)?", n)]
            names = [os.path.join(folder, n) for n in names]
        found = False
        for n in names:
            try:
                with open(os.path.join(self.directory, n), "rb") as f:
                    raw = f.read(MAX_OBJECT + 1)
            except FileNotFoundError:
                continue
            # The header comes twice: whichever end is whole says where the payload is.
            for at in (0, len(raw) - 128):
                try:
                    h = Header(raw[at:at + 128])
                except Damaged:
                    continue
                if h.kind != kind or h.name_hash != blake3(stem(n).encode())[:16] or self.uuid not in (None, h.repository):
                    continue
                begin = h.payload_at if at == 0 else len(raw) - h.object_bytes + h.payload_at
                if begin >= 0 and begin + h.payload_bytes <= len(raw):
                    found = True
                    yield h, raw[begin:begin + h.payload_bytes]
        if not found:
            raise Damaged(f"{name}: no copy of it can be read")

    # Keys

    def open_ring(self, passphrase, identities):
        secrets = [i for i in identities if i.startswith("AGE-SECRET-KEY-1")]
        if passphrase is not None:
            secrets += self.slots(passphrase)
        for revision in sorted({n[5:13] for n in self.names("keys") if re.match(r"ring-\d{8}\.", n)}, reverse=True):
            name = f"keys/ring-{revision}"
            for payload in self.objects(name, RING, [f"{name}.{i}" for i in range(3)]):
                armoured = re.search(r"-----BEGIN AGE.*?-----END AGE ENCRYPTED FILE-----", payload.decode(), re.S).group()
                for secret in secrets:
                    content = age_open(armoured, with_identity(secret))
                    if content is None:
                        continue
                    ring = cbor(content)
                    if ring[1] != self.uuid:
                        raise Damaged("the ring is of another repository")
                    self.keys = {**ring[5], "identity": ring[6], "hash": ring[7]}
                    return
        raise SystemExit("no passphrase or identity that was given opens this repository")

    def slots(self, passphrase):
        """The identities in the slots that a passphrase opens."""
        for name in sorted({re.sub(r"\.[012].*$", "", n) for n in self.names("keys") if n.startswith("slot-")}):
            for payload in self.objects(f"keys/{name}", SLOT, [f"keys/{name}.{i}" for i in range(3)]):
                text = payload.decode()
                passes, kib, lanes = (int(n) for n in re.search(r"^argon2id (\d+) (\d+) (\d+)$", text, re.M).groups())
                if passes > 16 or kib > 1 << 20 or lanes > 16:
                    continue
                salt = re.search(r"^salt ([0-9a-f]{32})$", text, re.M).group(1).encode()
                word = argon2id(passphrase, salt, passes, kib, lanes).hex().encode()
                armoured = re.search(r"-----BEGIN AGE.*?-----END AGE ENCRYPTED FILE-----", text, re.S).group()
                identity = age_open(armoured, with_passphrase(word))
                if identity is not None:
                    return [identity.decode().strip()]
        return []

    # Frames

    def open_frame(self, h, sealed, number):
        if h.cipher != self.cipher or h.generation not in self.keys:
            raise Damaged("sealed with keys that are not known")
        key = derive_key("varve repository v1 object key", self.keys[h.generation] + h.salt)
        nonce = number.to_bytes(8, "little") + bytes(4)
        if h.cipher == 1:
            try:
                return AESGCM(key).decrypt(nonce, sealed, h.associated)
            except InvalidTag:
                raise Damaged("a frame does not authenticate") from None
        plain, tag = sealed[:-16], sealed[-16:]
        if keyed(key, h.associated + nonce + plain)[:16] != tag:
            raise Damaged("a frame is not what was stored")
        return plain

    # Records

    def backups(self):
        """All backups that exist, oldest first."""
        deleted = {stem(n) for n in self.names("deleted")}
        out = []
        for name in sorted({stem(n) for n in self.names("backups")}):
            try:
                record = self.record(name)
            except Damaged as why:
                print(f"record {name} cannot be read: {why}", file=sys.stderr)
                continue
            if name not in deleted:
                out += [dict(record=record, entry=e) for e in record[2] if e[1].hex() not in deleted]
        return sorted(out, key=lambda b: (b["record"][3], b["entry"][1]))

    def record(self, name):
        failed = None
        for h, payload in self.sound(f"backups/{name}", RECORD):
            try:
                return cbor(self.open_frame(h, payload, 0))
            except Damaged as why:
                failed = why
        raise failed

    # Packs

    def pack(self, kind, ident):
        """All sound copies of a pack: header, payload, directory."""
        if (kind, ident) not in self.directories:
            found = []
            name = f"{'packs' if kind == PACK else 'nodes'}/{ident.hex()[:2]}/{ident.hex()}"
            for h, payload in self.sound(name, kind):
                try:
                    found.append((h, payload, self.entries(self.open_frame(h, payload[:h.directory_bytes], 0), h.directory_bytes)))
                except Damaged:
                    continue
            if len(self.directories) > 8:
                self.directories.clear()
            self.directories[kind, ident] = found
        return self.directories[kind, ident]

    @staticmethod
    def entries(directory, at):
        count, = struct.unpack("<I", directory[:4])
        out = []
        for i in range(count):
            ident, sealed, plain, encoding = struct.unpack("<32sIIB", directory[4 + 44 * i:4 + 44 * i + 41])
            out.append((ident, at, sealed, plain, encoding))
            at += sealed
        return out

    def content(self, kind, ident, pack, frame):
        """A chunk or map node: where it is said to be, else wherever it is."""
        for place in [(pack, frame)], self.places(kind, ident):
            for p, f in place:
                try:
                    for h, payload, entries in self.pack(kind, p):
                        if f < len(entries) and entries[f][0] == ident:
                            return self.decoded(h, payload, entries[f], f)
                except Damaged:
                    continue
        raise Damaged(f"{'chunk' if kind == PACK else 'map node'} {ident.hex()} is lost")

    def decoded(self, h, payload, entry, frame):
        # What authenticates is what was stored; that it has the id that the directory says could be looked at as well.
        _, at, sealed, plain_bytes, encoding = entry
        data = self.open_frame(h, payload[at:at + sealed], frame + 1)
        if encoding == 1:
            data = subprocess.run(["zstd", "-d", "-q", "-c"], input=data, capture_output=True, check=True).stdout
        if len(data) != plain_bytes:
            raise Damaged("a frame does not hold what it should")
        return data

    def places(self, kind, ident):
        """Where else a content is, by the directories of all packs."""
        if self.everywhere is None:
            self.everywhere = {}
            for k, folder in (PACK, "packs"), (NODES, "nodes"):
                for shelf in self.names(folder):
                    for name in sorted({stem(n) for n in self.names(f"{folder}/{shelf}")}):
                        try:
                            copies = self.pack(k, bytes.fromhex(name))
                        except Damaged:
                            continue
                        for _, _, entries in copies:
                            for f, e in enumerate(entries):
                                self.everywhere.setdefault((k, e[0]), []).append((bytes.fromhex(name), f))
        return self.everywhere.get((kind, ident), [])

    # Maps

    def regions(self, reference, level, first):
        """The regions below a node that are not all hole: (index, chunks, zero)."""
        node = self.content(NODES, *reference)
        form, own_level, blocks, packs = struct.unpack("<BBHH", node[:6])
        slots, = struct.unpack("<Q", node[6:14])
        if form != 1 or own_level != level or blocks != self.blocks:
            raise Damaged("not the map node that was expected")
        ids = [node[14 + 16 * i:30 + 16 * i] for i in range(packs)]
        at = 14 + 16 * packs

        def reference_at(at):
            pack, frame = struct.unpack("<BI", node[at:at + 5])
            return node[at + 5:at + 37], ids[pack], frame

        for slot in range(64):
            if not slots >> slot & 1:
                continue
            index = first + slot * 64 ** level
            if level > 0:
                yield from self.regions(reference_at(at), level - 1, index)
                at += 37
                continue
            shape, at = node[at], at + 1
            chunks, zero, size = [], 0, self.blocks // 8
            for c in range(shape & 7):
                ref, at = reference_at(at), at + 37
                held = (1 << self.blocks) - 1
                if not shape >> 4 + c & 1:
                    held, at = int.from_bytes(node[at:at + size], "little"), at + size
                chunks.append((ref, held))
            if shape & 8:
                zero, at = int.from_bytes(node[at:at + size], "little"), at + size
            yield index, chunks, zero

    def restore(self, entry, path):
        """Writes a backup to a new file."""
        size = entry[4]
        with open(path, "xb") as out:
            out.truncate(size)
            if 9 not in entry:
                return  # all hole
            root = entry[9][:32], entry[9][32:], entry.get(10, 0)
            for index, chunks, zero in self.regions(root, entry.get(11, 0), 0):
                contents = {}
                for block in range(self.blocks):
                    offset = (index * self.blocks + block) * BLOCK
                    if zero >> block & 1 or offset >= size:
                        continue
                    for ref, held in reversed(chunks):
                        if held >> block & 1:
                            if ref not in contents:
                                contents[ref] = self.content(PACK, *ref)
                            at = bin(held & (1 << block) - 1).count("1") * BLOCK
                            out.seek(offset)
                            out.write(contents[ref][at:at + min(BLOCK, size - offset)])
                            break


def main():
    p = argparse.ArgumentParser(description="Restores backups from a Varve repository in a directory, without Varve.")
    p.add_argument("repository")
    p.add_argument("--password-file", help="its first line is the passphrase")
    p.add_argument("--identity-file", action="append", default=[], help="age identities")
    commands = p.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    restore = commands.add_parser("restore")
    restore.add_argument("backup")
    restore.add_argument("file")
    a = p.parse_args()

    passphrase, identities = None, []
    if a.password_file:
        with open(a.password_file, "rb") as f:
            passphrase = f.readline().rstrip(b"\n").removesuffix(b"\r")
    for name in a.identity_file:
        with open(name) as f:
            identities += [line.strip() for line in f if line.startswith("AGE-SECRET-KEY-")]
    try:
        repository = Repository(a.repository, passphrase, identities)
        found = repository.backups()
        if a.command == "list":
            for b in found:
                e = b["entry"]
                print(e[1].hex(), e[2], uuid.UUID(bytes=e[3]), e[4], {1: "full", 2: "incremental", 3: "differential"}[e[5]])
            return
        chosen = [b for b in found if b["entry"][1].hex().startswith(a.backup)]
        if len(chosen) != 1:
            sys.exit(f"{len(chosen)} backups have an id that begins with {a.backup}")
        repository.restore(chosen[0]["entry"], a.file)
    except Damaged as why:
        sys.exit(f"damaged: {why}")


if __name__ == "__main__":
    main()
