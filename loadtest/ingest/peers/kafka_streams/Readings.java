// Kafka Streams, as its documentation has it: the DSL, windowed counts in RocksDB with their changelogs.
// The stream's key is the source, so each tag is a branch and nothing has to be repartitioned.

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.FileWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Branched;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.TimestampExtractor;

public final class Readings {
    record Reading(String id, long time, String source, String kind, Double value, int battery) {}

    /** Event time: the reading's own. */
    public static final class OwnTime implements TimestampExtractor {
        @Override
        public long extract(ConsumerRecord<Object, Object> event, long partitionTime) {
            return ((Reading) event.value()).time();
        }
    }

    /** How far we are, in the lines of peers/marks.py. One stream thread, so no lock. */
    private static final class Marks {
        private final long total = Long.parseLong(env("BENCH_EVENTS"));
        private final FileWriter file;
        private long read;
        private long kept;
        private long nextMs;

        Marks() throws IOException {
            file = new FileWriter(env("BENCH_MARKS"), true);
        }

        void read() {
            read++;
            if (read % 500 != 0 && read != total) {
                return;
            }
            long nowMs = System.currentTimeMillis();
            if (nowMs >= nextMs || read == total) {
                nextMs = nowMs + 100;
                try {
                    file.write("{\"events\": " + read + ", \"time\": " + nowMs / 1000.0 + ", \"kept\": " + kept + "}\n");
                    file.flush();
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            }
        }
    }

    private static String env(String name) {
        return System.getenv(name);
    }

    private static Serde<Reading> readings() {
        ObjectMapper mapper = new ObjectMapper();
        return Serdes.serdeFrom(
                (topic, reading) -> {
                    try {
                        return mapper.writeValueAsBytes(reading);
                    } catch (JsonProcessingException error) {
                        throw new SerializationException(error);
                    }
                },
                (topic, bytes) -> {
                    try {
                        return mapper.readValue(bytes, Reading.class);
                    } catch (IOException error) {
                        throw new SerializationException(error);
                    }
                });
    }

    public static void main(String[] arguments) throws IOException {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, env("BENCH_GROUP"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, env("BENCH_BOOTSTRAP"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, Path.of(env("BENCH_HOME"), "state").toString());
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);

        Marks marks = new Marks();
        StreamsBuilder builder = new StreamsBuilder();
        Map<String, KStream<String, Reading>> tagged = builder
                .stream(
                        env("BENCH_TOPIC"),
                        Consumed.with(Serdes.String(), readings()).withTimestampExtractor(new OwnTime()))
                .filter((source, reading) -> {
                    boolean good = reading.value() != null && reading.value() >= -50 && reading.value() <= 150;
                    marks.kept += good ? 1 : 0;
                    marks.read();
                    return good;
                })
                .split()
                .branch((source, reading) -> reading.value() >= 80, Branched.as("hot"))
                .defaultBranch(Branched.as("untagged"));
        TimeWindows windows = TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofSeconds(1));
        tagged.forEach((tag, stream) -> stream
                .groupByKey(Grouped.with(Serdes.String(), readings()))
                .windowedBy(windows)
                .count(Materialized.as("counts-" + tag)));

        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
