// Package nbd holds what the two ends of the Network Block Device protocol have
// in common: magic numbers, option, command and flag values, wire errors, and
// the layout of message headers. Package nbd/server and nbd/client speak it.
//
// The authority is NetworkBlockDevice/nbd, doc/proto.md ("the specification");
// section names in comments refer to it. Extended headers are that project's
// extension-ext-header.
//
// Vocabulary, as in the specification: a connection begins with the handshake,
// in which the client haggles over options until it picks an export; then comes
// the transmission phase of requests and replies. A reply is simple (one header)
// or structured (chunks). A request is known by its cookie. A meta context is a
// named property of ranges of the export, asked for with BLOCK_STATUS. With
// extended headers, requests and replies carry 64-bit lengths and every reply
// is made of chunks.
//
// Left out: oldstyle negotiation, RESIZE, and payloads of BLOCK_STATUS requests.
package nbd

// Magic numbers.
const (
	InitMagic            = 0x4e42444d41474943 // "NBDMAGIC"
	OptionMagic          = 0x49484156454F5054 // "IHAVEOPT"
	OptionReplyMagic     = 0x3e889045565a9
	RequestMagic         = 0x25609513
	ExtendedRequestMagic = 0x21e41c71
	SimpleReplyMagic     = 0x67446698
	StructuredReplyMagic = 0x668e33ef
	ExtendedReplyMagic   = 0x6e8a278c
)

// Limits.
const (
	// MaxPayload is the largest length, in bytes, of a READ or WRITE that every
	// party is expected to handle (section "Size constraints").
	MaxPayload = 32 << 20
	// MaxString is the longest string, in bytes, of any message.
	MaxString = 4096
	// DefaultPort is the port IANA reserved.
	DefaultPort = "10809"
)

// HandshakeFlags are sent by the server, and returned by the client as far as
// it agrees, before the first option.
type HandshakeFlags = uint16

// Handshake flags; those of the client have the same bits in a 32-bit field.
const (
	FlagFixedNewstyle HandshakeFlags = 1 << 0
	FlagNoZeroes      HandshakeFlags = 1 << 1
)

// TransmissionFlags say what the export and the server can do.
type TransmissionFlags uint16

// Transmission flags.
const (
	FlagHasFlags        TransmissionFlags = 1 << 0
	FlagReadOnly        TransmissionFlags = 1 << 1
	FlagSendFlush       TransmissionFlags = 1 << 2
	FlagSendFUA         TransmissionFlags = 1 << 3
	FlagRotational      TransmissionFlags = 1 << 4
	FlagSendTrim        TransmissionFlags = 1 << 5
	FlagSendWriteZeroes TransmissionFlags = 1 << 6
	FlagSendDF          TransmissionFlags = 1 << 7
	FlagCanMultiConn    TransmissionFlags = 1 << 8
	FlagSendCache       TransmissionFlags = 1 << 10
	FlagSendFastZero    TransmissionFlags = 1 << 11
)

// Option is what a client asks for in the handshake.
type Option uint32

// Options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

// Rep is the type of a reply to an option.
type Rep uint32

// Option reply types. Errors have bit 31 set and may carry a text.
const (
	RepAck         Rep = 1
	RepServer      Rep = 2
	RepInfo        Rep = 3
	RepMetaContext Rep = 4

	RepErrUnsup             Rep = 1<<31 + 1
	RepErrPolicy            Rep = 1<<31 + 2
	RepErrInvalid           Rep = 1<<31 + 3
	RepErrPlatform          Rep = 1<<31 + 4
	RepErrTLSReqd           Rep = 1<<31 + 5
	RepErrUnknown           Rep = 1<<31 + 6
	RepErrShutdown          Rep = 1<<31 + 7
	RepErrBlockSizeReqd     Rep = 1<<31 + 8
	RepErrTooBig            Rep = 1<<31 + 9
	RepErrExtHeaderRequired Rep = 1<<31 + 10
)

// IsError tells whether r ends an option in failure.
func (r Rep) IsError() bool { return r&(1<<31) != 0 }

// Info is the type of an information item about an export.
type Info uint16

// Information items.
const (
	InfoExport      Info = 0
	InfoName        Info = 1
	InfoDescription Info = 2
	InfoBlockSize   Info = 3
)

// Command is what a request wants done.
type Command uint16

// Commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

// CommandFlags modify a command.
type CommandFlags uint16

// Command flags.
const (
	CmdFlagFUA        CommandFlags = 1 << 0
	CmdFlagNoHole     CommandFlags = 1 << 1
	CmdFlagDF         CommandFlags = 1 << 2
	CmdFlagReqOne     CommandFlags = 1 << 3
	CmdFlagFastZero   CommandFlags = 1 << 4
	CmdFlagPayloadLen CommandFlags = 1 << 5 // extended headers only
)

// ReplyFlagDone marks the last chunk of a structured reply.
const ReplyFlagDone = 1 << 0

// ReplyType is the type of a chunk of a structured reply.
type ReplyType uint16

// Chunk types. Errors have bit 15 set.
const (
	ReplyNone           ReplyType = 0
	ReplyOffsetData     ReplyType = 1
	ReplyOffsetHole     ReplyType = 2
	ReplyBlockStatus    ReplyType = 5
	ReplyBlockStatusExt ReplyType = 6
	ReplyError          ReplyType = 1<<15 + 1
	ReplyErrorOffset    ReplyType = 1<<15 + 2
)

// IsError tells whether a chunk of type t reports a failure.
func (t ReplyType) IsError() bool { return t&(1<<15) != 0 }

// BaseAllocation is the one meta context the specification itself defines.
const BaseAllocation = "base:allocation"

// Flags of BaseAllocation.
const (
	StateHole = 1 << 0 // no space is allocated
	StateZero = 1 << 1 // reads as zeros
)
