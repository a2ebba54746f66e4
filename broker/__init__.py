"""An MQTT broker to run: amqtt made safe, or a managed Mosquitto; one table of access rules for both.

Imports `common` only. Start reading at `rules` (who may say and hear what), then `engine`.
"""
